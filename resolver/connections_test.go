package resolver

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// manyLayers puts an image of n layers of 40 KB into reg.
func manyLayers(reg *registrytest.Registry, n int) [][]byte {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = 40_000
	}
	return layerImage(reg, sizes...)
}

// TestFewConnections: a pull of many layers, with tokens and redirects to another server, opens at most as many connections as there are
// downloads at once, and the pull after it, by another resolver, none.
func TestFewConnections(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			var link, store registrytest.Link
			blobs, _ := p.make(t, store.Limit)
			reg, dir := p.make(t, link.Limit)
			data := manyLayers(reg, 40)
			manyLayers(blobs, 40)
			scheme := "http"
			if reg.CA != nil {
				scheme = "https"
			}
			reg.Fault = registrytest.On("/blobs/", func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, scheme+"://"+blobs.Host+r.URL.Path, http.StatusTemporaryRedirect)
				return true
			})
			tokens := registrytest.NewTokenServer(t)
			if reg.CA == nil { // the token server has no TLS
				reg.Guard = tokens.Guard
			}
			var askers sync.Map
			tokens.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
				askers.Store(r.RemoteAddr, true)
				return false
			}
			pool := new(Connections)
			defer pool.Close()
			var opened int
			for n, downloads := range []int{4, 1, 1} {
				r := newResolver(t, func(o *Options) { o.HostsDir, o.Connections = dir, pool })
				timed(t, r, reg, data, &FetchOptions{Downloads: downloads})
				if n == 0 { // net/http may begin one more while another is about to be free
					opened = link.Opened() + store.Opened()
				}
			}
			if link.Opened() > 8 || store.Opened() > 8 {
				t.Errorf("%d and %d connections for 4 downloads at once", link.Opened(), store.Opened())
			}
			if got := link.Opened() + store.Opened(); got != opened {
				t.Errorf("%d connections, and %d after other pulls", opened, got)
			}
			n := 0
			askers.Range(func(any, any) bool { n++; return true })
			if asked := len(tokens.Requests()); reg.CA == nil && (n != 1 || asked != 3) {
				t.Errorf("%d connections for %d tokens", n, asked)
			}
		})
	}
}

// TestRangesReuse: ranges of a body without length are read to their end, so that their connections serve the next ranges.
func TestRangesReuse(t *testing.T) {
	var link registrytest.Link
	reg := registrytest.NewPlain(t, link.Limit)
	data := layerImage(reg, bigSize)
	reg.Fault = registrytest.On(layerPath(data[0]), func(w http.ResponseWriter, r *http.Request) bool {
		var from, last int
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &last); n != 2 {
			return false
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, last, bigSize))
		w.WriteHeader(http.StatusPartialContent)
		w.(http.Flusher).Flush()
		_, _ = w.Write(data[0][from : last+1])
		return true
	})
	timed(t, ranged(t), reg, data, nil)
	if n := link.Opened(); n > 10 { // and not 22; one may be begun while another is about to be free
		t.Errorf("%d connections for %d ranges", n, reg.Count("bytes="))
	}
}

// TestProtocols: HTTP/2 where the server has it, with a hosts.toml that names a CA too, and HTTP/1.1 where it does not.
func TestProtocols(t *testing.T) {
	for _, tc := range []struct {
		name  string
		proto []string // offered; nil is the default of Go's servers: both
		want  int
	}{{"both", nil, 2}, {"HTTP/1.1 alone", []string{"http/1.1"}, 1}, {"none is named", []string{}, 1}} {
		t.Run(tc.name, func(t *testing.T) {
			var link registrytest.Link
			reg := registrytest.NewTLS(t, func(s *httptest.Server) {
				link.Limit(s)
				if tc.proto != nil {
					s.EnableHTTP2 = false
					s.TLS = &tls.Config{NextProtos: tc.proto}
				}
			})
			data := layerImage(reg, 8*testChunk, 8*testChunk, 8*testChunk, 8*testChunk, 8*testChunk, 8*testChunk)
			dir := certsDir(t, reg.Host, map[string][]byte{"ca.crt": reg.CA, "hosts.toml": fmt.Appendf(nil,
				"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", reg.Host)})
			var other atomic.Int32
			reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.ProtoMajor != tc.want {
					other.Add(1)
				}
				return false
			}
			timed(t, newResolver(t, func(o *Options) { o.HostsDir, o.ChunkSize = dir, testChunk }), reg, data, nil)
			if other.Load() != 0 {
				t.Errorf("%d requests are not HTTP/%d", other.Load(), tc.want)
			}
			if n := link.Opened(); tc.want == 2 && n < 2 || n > 8 { // large blobs are spread over lanes
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestClose: idle connections end with the resolver, or with what they were shared by, and with them their goroutines.
func TestClose(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			reg, dir := p.make(t, nil)
			data := layerImage(reg, 8*testChunk, 8*testChunk, 1000)
			pool := new(Connections)
			r := newResolver(t, func(o *Options) { o.HostsDir, o.ChunkSize, o.Connections = dir, testChunk, pool })
			timed(t, r, reg, data, nil)
			open := clientGoroutines()
			r.Close()
			if open == 0 || clientGoroutines() == 0 {
				t.Error("the connections of others were closed, or there was none")
			}
			pool.Close()
			own := newResolver(t, func(o *Options) { o.HostsDir, o.ChunkSize = dir, testChunk })
			timed(t, own, reg, data, nil)
			own.Close()
			deadline := time.Now().Add(5 * time.Second)
			for clientGoroutines() > 0 && time.Now().Before(deadline) {
				time.Sleep(5 * time.Millisecond)
			}
			if n := clientGoroutines(); n > 0 {
				t.Errorf("%d goroutines of connections are left", n)
			}
			timed(t, r, reg, data, nil) // as if nothing had happened
			pool.Close()
		})
	}
}

// clientGoroutines counts those that read connections of transports. Other tests run before and after, not beside.
func clientGoroutines() int {
	buf := make([]byte, 1<<20)
	all := string(buf[:runtime.Stack(buf, true)])
	return strings.Count(all, "(*persistConn).readLoop(") + strings.Count(all, "(*http2ClientConn).readLoop(") + strings.Count(all, "(*ClientConn).readLoop(")
}

// TestConnectionsApart: connections are shared by those alone whose configuration is the same.
func TestConnectionsApart(t *testing.T) {
	const name = "r.example.com:5000"
	host := func() *endpoint {
		t.Helper()
		r := newResolver(t, nil)
		hosts, err := r.client.endpoints(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return hosts[0]
	}
	reg := registrytest.NewTLS(t, nil)
	cert, key := keyPair(t)
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
		{"the same", files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA}, files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA}, true},
		{"without CA", plain, files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA}, false},
		{"another CA behind the same name", files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": reg.CA},
			files{"hosts.toml": toml("ca = \"ca.crt\"\n"), "ca.crt": cert}, false},
		{"skip_verify", plain, files{"hosts.toml": toml("skip_verify = true\n")}, false},
		{"dial_timeout", plain, files{"hosts.toml": toml("dial_timeout = \"1s\"\n")}, false},
		{"client certificate", plain, files{"hosts.toml": toml("client = [[\"c.cert\", \"c.key\"]]\n"), "c.cert": cert, "c.key": key}, false},
		{"the same client certificate", files{"hosts.toml": toml("client = [[\"c.cert\", \"c.key\"]]\n"), "c.cert": cert, "c.key": key},
			files{"hosts.toml": toml("client = [[\"c.cert\", \"c.key\"]]\n"), "c.cert": cert, "c.key": key}, true},
	} {
		pool := new(Connections)
		var got []*endpoint
		for _, d := range []string{certsDir(t, name, tc.a), certsDir(t, name, tc.b)} {
			r := newResolver(t, func(o *Options) { o.HostsDir, o.Connections = d, pool })
			hosts, err := r.client.endpoints(t.Context(), name)
			if err != nil {
				t.Fatal(tc.name, err)
			}
			got = append(got, hosts[0])
		}
		if (got[0].home == got[1].home) != tc.same || (got[0].foreign == got[1].foreign) != tc.same {
			t.Errorf("%s: shared: %v", tc.name, !tc.same)
		}
		if got[0].auth == got[1].auth || got[0].auth.client == got[1].auth.client {
			t.Errorf("%s: who asks is shared", tc.name)
		}
	}
	if a, b := host(), host(); a.home == b.home {
		t.Error("two resolvers share without being told")
	}
}

// TestConnectionsFallBack: who wants HTTPS does not get the transport of somebody who takes HTTP as well, nor does anybody what another one's
// transport found out about that.
func TestConnectionsFallBack(t *testing.T) {
	const name = "r.example.com:5000"
	dir := certsDir(t, name, map[string][]byte{"ca.crt": registrytest.NewTLS(t, nil).CA})
	pool := new(Connections)
	seen := map[*lanes]bool{}
	for i, plain := range []bool{true, false, true, false} {
		r := newResolver(t, func(o *Options) { o.HostsDir, o.Connections, o.PlainHTTP = dir, pool, plain })
		hosts, err := r.client.endpoints(t.Context(), name)
		if err != nil || len(hosts) != 1 || hosts[0].Scheme != "https" {
			t.Fatal(hosts, err)
		}
		way := hosts[0].home
		if _, ok := way.first.(*http.Transport); ok == plain {
			t.Errorf("pull %d, plain: %v, has %T", i, plain, way.first)
		}
		if seen[way] != (i == 3) { // the second one with HTTPS alone shares
			t.Errorf("pull %d, plain: %v, shares: %v", i, plain, seen[way])
		}
		seen[way] = true
	}
}

// TestConnectionsFallBackClose: what is not shared ends with the resolver.
func TestConnectionsFallBackClose(t *testing.T) {
	reg := registrytest.New(t) // a loopback name, so HTTP is tried after HTTPS
	data := layerImage(reg, 1000)
	dir := certsDir(t, reg.Host, map[string][]byte{"ca.crt": registrytest.NewTLS(t, nil).CA})
	r := newResolver(t, func(o *Options) { o.HostsDir, o.Connections = dir, new(Connections) })
	before := clientGoroutines()
	timed(t, r, reg, data, nil)
	if clientGoroutines() == before {
		t.Fatal("no connection is kept")
	}
	r.Close()
	deadline := time.Now().Add(5 * time.Second)
	for clientGoroutines() > before && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if n := clientGoroutines(); n > before {
		t.Errorf("%d goroutines of connections are left", n-before)
	}
}

// TestConnectionsHere: that a registry was found on this machine, so that it may lead here, is not known to pulls that did not find it there.
func TestConnectionsHere(t *testing.T) {
	const name = "r.example.com:5000"
	for _, tc := range []struct {
		name, host string
		same       bool
	}{{"by address", name, false}, {"by name", "127.0.0.1:5000", true}} {
		pool := new(Connections)
		dir := certsDir(t, name, map[string][]byte{"hosts.toml": fmt.Appendf(nil, "server = \"https://%s\"\n[host.\"https://%s\"]\n", name, tc.host)})
		var got []*endpoint
		for range 2 {
			r := newResolver(t, func(o *Options) { o.HostsDir, o.Connections = dir, pool })
			hosts, err := r.client.endpoints(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, hosts[0])
			hosts[0].local.Store(len(got) == 1)
		}
		if (got[0].home == got[1].home) != tc.same || (got[0].foreign == got[1].foreign) != tc.same {
			t.Errorf("found here %s: shared: %v", tc.name, !tc.same)
		}
	}
}

// swallowing is a listener whose connections can be made to take requests that nobody sees any more.
type swallowing struct {
	net.Listener
	mu    sync.Mutex
	conns []*swallowed
}

type swallowed struct {
	net.Conn
	dead atomic.Bool
}

func (l *swallowing) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &swallowed{Conn: conn}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return c, nil
}

// cut says how many connections there were so far. They are dead.
func (l *swallowing) cut() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.dead.Store(true)
	}
	return len(l.conns)
}

func (c *swallowed) Read(p []byte) (int, error) {
	for {
		if n, err := c.Conn.Read(p); err != nil || !c.dead.Load() {
			return n, err
		}
	}
}

// TestConnectionsDead: when all connections of an earlier pull turn out to lead nowhere, they cost one attempt, not one each.
func TestConnectionsDead(t *testing.T) {
	const layers = 8
	var link swallowing
	reg := registrytest.NewPlain(t, func(s *httptest.Server) {
		link.Listener = s.Listener
		s.Listener = &link
	})
	data := manyLayers(reg, layers)
	var waiting atomic.Int32
	all := make(chan struct{})
	reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if slices.ContainsFunc(data, func(d []byte) bool { return strings.HasSuffix(r.URL.Path, layerPath(d)) }) {
			if waiting.Add(1) == layers {
				close(all)
			}
			select {
			case <-all:
			case <-r.Context().Done():
			}
		}
		return false
	}
	pool := new(Connections)
	defer pool.Close()
	again := func() time.Duration {
		r := newResolver(t, func(o *Options) { o.Connections, o.Attempts, o.StallTimeout = pool, 3, 500*time.Millisecond })
		return timed(t, r, reg, data, nil)
	}
	again()
	if n := link.cut(); n < 5 {
		t.Fatalf("%d connections", n)
	}
	if took := again(); took > 5*time.Second {
		t.Errorf("%v", took)
	}
}

// TestConnectionsBound: what is remembered of registries is bounded, and ends.
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
	l := newLanes(&http.Transport{}, &http.Transport{})
	for i := range 2 * maxRegistries {
		l.learn(&url.URL{Scheme: "https", Host: fmt.Sprint(i)}, &http.Response{ProtoMajor: 1})
	}
	if n := len(l.http1); n > maxRegistries {
		t.Errorf("%d hosts", n)
	}
}
