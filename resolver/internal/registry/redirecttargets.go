package registry

import (
	"cmp"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

// maxGuests bounds how many origins one request gets tokens for.
const maxRedirectTargets = 3

// guests are the other registries that a request is redirected to: a registry may be no more than a name in front of
// them. One that wants a token gets an anonymous one of its own. Credentials, and tokens that were given for them, are
// for the registry of the reference and its mirrors alone.
type redirectTargets struct {
	repo  *Repository
	host  *Endpoint // whose redirects are followed
	known map[string]*authorization
}

func (p *Repository) redirectTargets(host *Endpoint) *redirectTargets {
	return &redirectTargets{repo: p, host: host, known: map[string]*authorization{}}
}

// at returns the registry at u; nil for one too many.
func (g *redirectTargets) target(u *url.URL) *authorization {
	if g == nil {
		return nil
	}
	origin := u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port(u)
	other := g.known[origin]
	if other == nil {
		if len(g.known) == maxRedirectTargets {
			return nil
		}
		e := &Endpoint{
			RegistryHost: docker.RegistryHost{Scheme: u.Scheme, Host: u.Host, Path: "/v2"},
			direct:       g.host.others, others: g.host.others,
		}
		e.auth = &authorizer{endpoint: e, client: g.repo.client, credentials: auth.NewCache(nil, nil), via: g.host.Host}
		other = &authorization{auth: e.auth}
		g.known[origin] = other
	}
	other.repository = cmp.Or(repositoryIn(u.Path), g.repo.Path)
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
