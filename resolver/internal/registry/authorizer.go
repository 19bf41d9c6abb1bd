package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

// authorizer answers the challenges of one endpoint. containerd's does not fit: it sends credentials to whatever realm it is told, and keeps
// tokens without regard to who they were given to.
type authorizer struct {
	endpoint    *Endpoint
	client      *Client
	credentials *auth.Cache
	via         string // the registry that redirected to this endpoint; empty for one that is configured
}

// proof is what a request was authorized with.
type presented struct {
	used        bool
	configured  bool        // hosts.toml has it
	fresh       bool        // got for this request, so that a refusal is final
	requirement requirement // what the registry asked for
	identity    string      // identity of the credential
	key         tokenKey
	token       string // empty for basic authentication
	note        string // why credentials that exist were not used
}

// host is the name that credentials are looked up by.
func (a *authorizer) host() string { return auth.CanonicalHost(a.endpoint.Host) }

// cached reports whether the request had a token that was fetched for an earlier one.
func (p presented) cached() bool { return p.token != "" && !p.fresh }

// origin is what tokens and demands are kept by. What a redirect led to may have been reached with less verification
// (skip_verify) than when it is pulled from directly, so that is kept apart.
func (a *authorizer) origin() string {
	if a.via != "" {
		return a.via + " " + a.endpoint.origin().String()
	}
	return a.endpoint.origin().String()
}

func (a *authorizer) repositoryKey(repository string) repositoryKey {
	return repositoryKey{origin: a.origin(), repository: repository}
}

// authorize sets the Authorization that the endpoint is known to want for a repository; none when nothing is known.
func (a *authorizer) authorize(ctx context.Context, h http.Header, repository string) (presented, error) {
	if h.Get("Authorization") != "" { // hosts.toml has the last word
		return presented{configured: true}, nil
	}
	d, ok := a.client.tokens.requirement(a.repositoryKey(repository))
	if !ok {
		return presented{}, nil
	}
	cred, err := a.credentials.Get(ctx, a.host())
	if err != nil {
		return presented{}, err
	}
	if d.scheme == "basic" {
		if cred.Username == "" {
			return presented{}, nil
		}
		req := http.Request{Header: h}
		req.SetBasicAuth(cred.Username, cred.Password)
		return presented{used: true, identity: cred.Identity()}, nil
	}
	if cred.RegistryToken != "" {
		h.Set("Authorization", "Bearer "+cred.RegistryToken)
		return presented{used: true, identity: cred.Identity()}, nil
	}
	realm, err := realmURL(a.endpoint.origin(), d.realm)
	if err != nil {
		return presented{}, nil //nolint:nilerr // it was of use to another credential; the registry's answer will tell
	}
	p := presented{requirement: d}
	if cred != (auth.Credential{}) && !trusted(a.endpoint.origin(), realm, a.client.opts.Realms[a.host()]) {
		p.note = fmt.Sprintf("credentials of %s were not sent to the token server %s, which is of another site", a.host(), realm.Host)
		cred = auth.Credential{}
	}
	p.key = tokenKey{origin: a.origin(), realm: d.realm, service: d.service, scope: d.scope, identity: cred.Identity()}
	p.token, p.fresh, err = a.client.tokens.token(ctx, p.key, func() (token string, life time.Duration, err error) {
		return a.fetchToken(ctx, realm, d, cred)
	})
	if err != nil {
		if errdefs.IsUnauthorized(err) {
			a.credentials.Forget(a.host())
		}
		a.client.tokens.dropRequirement(a.repositoryKey(repository)) // the registry may have moved to another token server
		for _, kind := range []cause.Kind{cause.Unauthorized, cause.Forbidden} {
			if cause.Is(err, kind) {
				err = cause.Mark(err, kind, a.host()) // a login is one to the registry, not to its token server
			}
		}
		return p, fmt.Errorf("registry %s: %w", a.endpoint.Host, a.explain(p, err))
	}
	p.used = true
	h.Set("Authorization", "Bearer "+p.token)
	return p, nil
}

// explain adds to a refusal why the registry was not shown more than p.
func (a *authorizer) explain(p presented, err error) error {
	if p.note != "" {
		err = fmt.Errorf("%w (%s)", err, p.note)
	}
	return a.credentials.Explain(a.host(), err)
}

// challenged learns from the answer 401 to a request that p was sent with. It says whether the request is worth another try.
func (a *authorizer) challenged(ctx context.Context, h http.Header, repository string, p presented) (bool, error) {
	if p.used {
		if p.token != "" {
			a.client.tokens.drop(p.key, p.token)
		} else {
			a.credentials.Forget(a.host())
		}
	}
	cred, err := a.credentials.Get(ctx, a.host())
	if err != nil {
		return false, err
	}
	if p.used && p.token == "" && p.identity == cred.Identity() {
		return false, nil
	}
	var basic bool
	var refused error
	for _, c := range challenges(h) {
		switch c.scheme {
		case "basic":
			basic = true
		case "bearer":
			d := requirement{scheme: "bearer", realm: c.params["realm"], service: c.params["service"], scope: c.params["scope"]}
			if d.scope == "" {
				d.scope = "repository:" + repository + ":pull"
			}
			if p.fresh && d == p.requirement {
				a.client.tokens.dropRequirement(a.repositoryKey(repository)) // the next request begins anew
				return false, nil
			}
			if d.realm == "" && p.cached() {
				return true, nil // the known token server gave the token that has expired
			}
			if cred.RegistryToken == "" {
				if _, err := realmURL(a.endpoint.origin(), d.realm); err != nil {
					refused = errors.Join(refused, err)
					continue
				}
			}
			a.client.tokens.setRequirement(a.repositoryKey(repository), d)
			return true, nil
		}
	}
	if basic && cred.Username != "" {
		a.client.tokens.setRequirement(a.repositoryKey(repository), requirement{scheme: "basic"})
		return true, nil
	}
	if refused != nil {
		return false, fmt.Errorf("%s: %w", strings.ReplaceAll(refused.Error(), "\n", "; "), errdefs.ErrUnauthenticated)
	}
	// Without a challenge, too, a token that was kept may be what is wrong: it expired, or was revoked. The token server
	// is known.
	return p.cached() && !basic, nil
}
