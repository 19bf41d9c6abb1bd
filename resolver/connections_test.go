package resolver

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// manyLayers adds an image with n layers of 40 KB.
func manyLayers(reg *registrytest.Registry, n int) [][]byte {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = 40_000
	}
	return layerImage(reg, sizes...)
}

// TestFewConnections checks that a pull of many layers, with tokens and with redirects to another
// server, opens about as many connections as blobs are downloaded at once, and that later pulls by
// other resolvers open none.
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
				if n == 0 { // net/http may open one more while another becomes idle
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

// TestRangesReuse checks that the bodies of ranges are read to their end even if they have no
// length, so that later ranges reuse the connections.
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
	if n := link.Opened(); n > 10 { // not 22; net/http may open one while another becomes idle
		t.Errorf("%d connections for %d ranges", n, reg.Count("bytes="))
	}
}

// TestProtocols checks that HTTP/2 is used if the server supports it, also with a hosts.toml that
// names a CA, and HTTP/1.1 otherwise.
func TestProtocols(t *testing.T) {
	for _, tc := range []struct {
		name  string
		proto []string // of the server; nil: the default of Go's servers, which is both
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
			dir := registrytest.CertsDir(t, reg.Host, map[string][]byte{"ca.crt": reg.CA, "hosts.toml": fmt.Appendf(nil,
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
			if n := link.Opened(); tc.want == 2 && n < 2 || n > 8 { // large blobs are spread over several connections
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestClose checks that Close ends the idle connections of a resolver, or of the Connections that
// it shares, and their goroutines.
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
				t.Error("shared connections were closed, or there was none")
			}
			pool.Close()
			own := newResolver(t, func(o *Options) { o.HostsDir, o.ChunkSize = dir, testChunk })
			timed(t, own, reg, data, nil)
			own.Close()
			if n := clientGoroutinesUpTo(0); n > 0 {
				t.Errorf("%d goroutines of connections are left", n)
			}
			timed(t, r, reg, data, nil) // the resolver is still usable
			pool.Close()
		})
	}
}

// clientGoroutinesUpTo waits up to 5 seconds until at most limit goroutines of clientGoroutines are
// left, and returns their number.
func clientGoroutinesUpTo(limit int) int {
	deadline := time.Now().Add(5 * time.Second)
	for clientGoroutines() > limit && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	return clientGoroutines()
}

// clientGoroutines counts the goroutines that read the connections of transports. It relies on no
// other test running at the same time.
func clientGoroutines() int {
	buf := make([]byte, 1<<20)
	all := string(buf[:runtime.Stack(buf, true)])
	return strings.Count(all, "(*persistConn).readLoop(") + strings.Count(all, "(*http2ClientConn).readLoop(") +
		strings.Count(all, "(*ClientConn).readLoop(")
}

// TestConnectionsFallBackClose checks that Close ends the connections that are not shared.
func TestConnectionsFallBackClose(t *testing.T) {
	reg := registrytest.New(t) // a loopback name, so HTTP is tried after HTTPS
	data := layerImage(reg, 1000)
	dir := registrytest.CertsDir(t, reg.Host, map[string][]byte{"ca.crt": registrytest.NewTLS(t, nil).CA})
	r := newResolver(t, func(o *Options) { o.HostsDir, o.Connections = dir, new(Connections) })
	before := clientGoroutinesUpTo(0) // those of earlier tests end by themselves
	timed(t, r, reg, data, nil)
	if clientGoroutines() == before {
		t.Fatal("no connection is kept")
	}
	r.Close()
	if n := clientGoroutinesUpTo(before); n > before {
		t.Errorf("%d goroutines of connections are left", n-before)
	}
}

// swallowing is a listener whose connections can be made to swallow all further requests.
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

// cut makes all connections so far swallow further requests, and returns their number.
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

// TestConnectionsDead checks that dead connections of an earlier pull cost one attempt together,
// and not one each.
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
		r := newResolver(t,
			func(o *Options) { o.Connections, o.Attempts, o.StallTimeout = pool, 3, 500*time.Millisecond })
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
