package registry

import (
	"cmp"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

// maxGuests bounds how many origins one request gets tokens for.
const maxGuests = 3

// guests are the other registries that a request is redirected to: a registry may be no more than a name in front of
// them. One that wants a token gets an anonymous one of its own. Credentials, and tokens that were given for them, are
// for the registry of the reference and its mirrors alone.
type guests struct {
	repo  *Repository
	host  *Endpoint // whose redirects are followed
	known map[string]*party
}

func (p *Repository) guests(host *Endpoint) *guests {
	return &guests{repo: p, host: host, known: map[string]*party{}}
}

// at returns the registry at u; nil for one too many.
func (g *guests) at(u *url.URL) *party {
	if g == nil {
		return nil
	}
	origin := u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port(u)
	other := g.known[origin]
	if other == nil {
		if len(g.known) == maxGuests {
			return nil
		}
		e := &Endpoint{
			RegistryHost: docker.RegistryHost{Scheme: u.Scheme, Host: u.Host, Path: "/v2"},
			home:         g.host.foreign, foreign: g.host.foreign,
		}
		e.auth = &authorizer{endpoint: e, client: g.repo.client, wallet: auth.NewCache(nil, nil), via: g.host.Host}
		other = &party{auth: e.auth}
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
