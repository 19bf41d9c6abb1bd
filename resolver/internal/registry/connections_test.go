package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/resolver/internal/retry"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestConnectionsApart checks that only clients with the same configuration share connections.
func TestConnectionsApart(t *testing.T) {
	const name = "r.example.com:5000"
	host := func() *Endpoint {
		t.Helper()
		r := newTestClient(t, nil)
		hosts, err := r.endpoints(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return hosts[0]
	}
	reg := registrytest.NewTLS(t, nil)
	cert, key := registrytest.KeyPair(t)
	toml := func(s string) []byte {
		return []byte("server = \"https://" + name + "\"\n[host.\"https://" + name + "\"]\n" + s)
	}
	plain := map[string][]byte{"hosts.toml": toml(""), "ca.crt": reg.CA}
	type files = map[string][]byte
	for _, tc := range []struct {
		name string
		a, b files
		same bool
	}{
		{"the same", files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA},
			files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA}, true},
		{"without CA", plain, files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA}, false},
		{"another CA behind the same name", files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA},
			files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": cert}, false},
		{"skip_verify", plain, files{"hosts.toml": toml("skip_verify = true\n")}, false},
		{"dial_timeout", plain, files{"hosts.toml": toml("dial_timeout = \"1s\"\n")}, false},
		{"client certificate", plain,
			files{"hosts.toml": toml("client = [[\"c.cert\", \"c.key\"]]\n"), "c.cert": cert, "c.key": key}, false},
		{"the same client certificate",
			files{"hosts.toml": toml("client = [[\"c.cert\", \"c.key\"]]\n"), "c.cert": cert, "c.key": key},
			files{"hosts.toml": toml("client = [[\"c.cert\", \"c.key\"]]\n"), "c.cert": cert, "c.key": key}, true},
	} {
		pool := new(Connections)
		var got []*Endpoint
		for _, d := range []string{registrytest.CertsDir(t, name, tc.a), registrytest.CertsDir(t, name, tc.b)} {
			r := newTestClient(t, func(o *Options) { o.HostsDir, o.Connections = d, pool })
			hosts, err := r.endpoints(t.Context(), name)
			if err != nil {
				t.Fatal(tc.name, err)
			}
			got = append(got, hosts[0])
		}
		if (got[0].direct == got[1].direct) != tc.same || (got[0].others == got[1].others) != tc.same {
			t.Errorf("%s: shared: %v", tc.name, !tc.same)
		}
		if got[0].auth == got[1].auth || got[0].auth.client == got[1].auth.client {
			t.Errorf("%s: the authorizer is shared", tc.name)
		}
	}
	if a, b := host(), host(); a.direct == b.direct {
		t.Error("two clients share connections by default")
	}
}

// TestConnectionsFallBack checks that a client which requires HTTPS does not share the transport of
// one that allows HTTP, and that such transports are not shared at all.
func TestConnectionsFallBack(t *testing.T) {
	const name = "r.example.com:5000"
	dir := registrytest.CertsDir(t, name, map[string][]byte{"ca.crt": registrytest.NewTLS(t, nil).CA})
	pool := new(Connections)
	seen := map[*transportSet]bool{}
	for i, plain := range []bool{true, false, true, false} {
		r := newTestClient(t, func(o *Options) { o.HostsDir, o.Connections, o.PlainHTTP = dir, pool, plain })
		hosts, err := r.endpoints(t.Context(), name)
		if err != nil || len(hosts) != 1 || hosts[0].Scheme != "https" {
			t.Fatal(hosts, err)
		}
		way := hosts[0].direct
		if _, ok := way.first.(*http.Transport); ok == plain {
			t.Errorf("pull %d, plain: %v, has %T", i, plain, way.first)
		}
		if seen[way] != (i == 3) { // the second client that requires HTTPS shares
			t.Errorf("pull %d, plain: %v, shares: %v", i, plain, seen[way])
		}
		seen[way] = true
	}
}

// TestConnectionsHere checks that connections to a registry that was found on this machine are not
// shared, unless its name is a loopback name.
func TestConnectionsHere(t *testing.T) {
	const name = "r.example.com:5000"
	for _, tc := range []struct {
		name, host string
		same       bool
	}{{"by address", name, false}, {"by name", "127.0.0.1:5000", true}} {
		pool := new(Connections)
		dir := registrytest.CertsDir(t, name,
			map[string][]byte{"hosts.toml": fmt.Appendf(nil, "server = \"https://%s\"\n[host.\"https://%s\"]\n", name,
				tc.host)})
		var got []*Endpoint
		for range 2 {
			r := newTestClient(t, func(o *Options) { o.HostsDir, o.Connections = dir, pool })
			hosts, err := r.endpoints(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, hosts[0])
			hosts[0].loopback.Store(len(got) == 1)
		}
		if (got[0].direct == got[1].direct) != tc.same || (got[0].others == got[1].others) != tc.same {
			t.Errorf("found on this machine %s: shared: %v", tc.name, !tc.same)
		}
	}
}

// TestConnectionsBound checks that the number of remembered registries and hosts is bounded.
func TestConnectionsBound(t *testing.T) {
	pool := new(Connections)
	for i := range 2 * maxRegistries {
		pool.share(fmt.Sprint(i), nil)
	}
	if n := len(pool.registries); n != maxRegistries {
		t.Errorf("%d registries", n)
	}
	for _, c := range pool.registries {
		c.used = time.Now().Add(-2 * forgetRegistry)
	}
	pool.share("x", nil)
	if n := len(pool.registries); n != 1 {
		t.Errorf("%d registries after all were forgotten", n)
	}
	l := newTransportSet(&http.Transport{}, &http.Transport{})
	for i := range 2 * maxRegistries {
		l.recordProtocol(&url.URL{Scheme: "https", Host: fmt.Sprint(i)}, &http.Response{ProtoMajor: 1})
	}
	if n := len(l.http1); n > maxRegistries {
		t.Errorf("%d hosts", n)
	}
}

// newTestClient makes a client whose failing requests end soon.
func newTestClient(tb testing.TB, edit func(*Options)) *Client {
	tb.Helper()
	opts := Options{
		UserAgent: "tank", StallTimeout: 2 * time.Second, DocumentTimeout: 2 * time.Minute, PerHost: 4,
		Retry: retry.Policy{Attempts: 3, Backoff: time.Millisecond},
	}
	if edit != nil {
		edit(&opts)
	}
	return New(opts)
}
