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

// authorizer answers the challenges of one endpoint. containerd's authorizer is not used: it sends
// credentials to any realm that a challenge names, and caches tokens without the identity for which
// they were issued.
type authorizer struct {
	endpoint    *Endpoint
	client      *Client
	credentials *auth.Cache
	via         string // the registry that redirected to this endpoint; "" for a configured endpoint
}

// presented is what a request presented to be authorized.
type presented struct {
	used        bool        // a credential or a token
	configured  bool        // the header Authorization of hosts.toml
	fresh       bool        // the token was fetched for this request; a refusal is final
	requirement requirement // what the registry required
	identity    string      // of the credential
	key         tokenKey    // of the token
	token       string      // "" for basic authentication
	note        string      // why an existing credential was not used
}

// host returns the name by which credentials are looked up.
func (a *authorizer) host() string { return auth.CanonicalHost(a.endpoint.Host) }

// cached reports whether the request presented a token that was fetched for an earlier request.
func (p presented) cached() bool { return p.token != "" && !p.fresh }

// origin returns the name by which tokens and requirements are cached. A target of a redirect has
// its own name: it may have been reached with less verification (skip_verify) than the same host
// when it is the configured registry.
func (a *authorizer) origin() string {
	if a.via != "" {
		return a.via + " " + a.endpoint.origin().String()
	}
	return a.endpoint.origin().String()
}

func (a *authorizer) repositoryKey(repository string) repositoryKey {
	return repositoryKey{origin: a.origin(), repository: repository}
}

// authorize sets the header Authorization that the endpoint is known to require for a repository.
func (a *authorizer) authorize(ctx context.Context, h http.Header, repository string) (presented, error) {
	if h.Get("Authorization") != "" { // hosts.toml takes precedence
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
		// Another credential did not need the realm. The registry's answer to the request is reported.
		return presented{}, nil //nolint:nilerr // see above
	}
	p := presented{requirement: d}
	if cred != (auth.Credential{}) && !trusted(a.endpoint.origin(), realm, a.client.opts.Realms[a.host()]) {
		p.note = fmt.Sprintf("credentials of %s were not sent to the token server %s, which is of another site",
			a.host(), realm.Host)
		cred = auth.Credential{}
	}
	p.key = tokenKey{
		origin: a.origin(), realm: d.realm, service: d.service, scope: d.scope, identity: cred.Identity(),
	}
	p.token, p.fresh, err = a.client.tokens.token(ctx, p.key, func() (token string, life time.Duration, err error) {
		return a.fetchToken(ctx, realm, d, cred)
	})
	if err != nil {
		if errdefs.IsUnauthorized(err) {
			a.credentials.Forget(a.host())
		}
		// The registry may use another token server now.
		a.client.tokens.dropRequirement(a.repositoryKey(repository))
		for _, kind := range []cause.Kind{cause.Unauthorized, cause.Forbidden} {
			if cause.Is(err, kind) {
				err = cause.Mark(err, kind, a.host()) // a user logs in to the registry, not to its token server
			}
		}
		return p, fmt.Errorf("registry %s: %w", a.endpoint.Host, a.explain(p, err))
	}
	p.used = true
	h.Set("Authorization", "Bearer "+p.token)
	return p, nil
}

// explain adds to a refusal why the request presented no more than p.
func (a *authorizer) explain(p presented, err error) error {
	if p.note != "" {
		err = fmt.Errorf("%w (%s)", err, p.note)
	}
	return a.credentials.Explain(a.host(), err)
}

// challenged handles the challenges in the headers h of a refusal of a request that presented p. It
// reports whether the request should be repeated.
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
			d := requirement{
				scheme: "bearer", realm: c.params["realm"], service: c.params["service"], scope: c.params["scope"],
			}
			if d.scope == "" {
				d.scope = "repository:" + repository + ":pull"
			}
			if p.fresh && d == p.requirement {
				// The next request starts without the requirement.
				a.client.tokens.dropRequirement(a.repositoryKey(repository))
				return false, nil
			}
			if d.realm == "" && p.cached() {
				return true, nil // the token has expired; its token server is known
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
	// Even without a challenge, a cached token may have expired or been revoked. Its token server
	// is known.
	return p.cached() && !basic, nil
}
