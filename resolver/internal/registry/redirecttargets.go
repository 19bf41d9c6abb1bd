package registry

import (
	"cmp"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/tank-snapshotter/tank/resolver/auth"
)

// maxRedirectTargets bounds the number of origins for which one request fetches tokens.
const maxRedirectTargets = 3

// redirectTargets are the other registries to which a request is redirected. A target that asks for
// a token gets an anonymous one of its own. Credentials, and the tokens that credentials obtained,
// are sent only to the registry of the reference and to its mirrors.
type redirectTargets struct {
	repo  *Repository
	host  *Endpoint                 // the host that redirects
	known map[string]*authorization // by origin
}

func (p *Repository) redirectTargets(host *Endpoint) *redirectTargets {
	return &redirectTargets{repo: p, host: host, known: map[string]*authorization{}}
}

// target returns the authorization for the registry at u, nil if there are already too many.
func (r *redirectTargets) target(u *url.URL) *authorization {
	if r == nil {
		return nil
	}
	origin := u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port(u)
	other := r.known[origin]
	if other == nil {
		if len(r.known) == maxRedirectTargets {
			return nil
		}
		e := &Endpoint{
			RegistryHost: docker.RegistryHost{Scheme: u.Scheme, Host: u.Host, Path: "/v2"},
			direct:       r.host.others, others: r.host.others,
		}
		e.auth = &authorizer{endpoint: e, client: r.repo.client, credentials: auth.NewCache(nil, nil), via: r.host.Host}
		other = &authorization{auth: e.auth}
		r.known[origin] = other
	}
	other.repository = cmp.Or(repositoryIn(u.Path), r.repo.Path)
	return other
}

// repositoryIn returns the repository in the path of a manifest or a blob, "" if there is none.
func repositoryIn(path string) string {
	_, rest, ok := strings.Cut(path, "/v2/")
	end := max(strings.LastIndex(rest, "/manifests/"), strings.LastIndex(rest, "/blobs/"))
	if !ok || end < 0 {
		return ""
	}
	return rest[:end]
}
