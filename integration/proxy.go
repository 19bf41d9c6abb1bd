package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Request is one request as a client made it.
type Request struct {
	Method, Path, Range string
	Status              int
	Bytes               int64 // of the body that were sent
	Done                bool
}

// Blob is the digest that the request names, empty when it is not about a blob.
func (r Request) Blob() digest.Digest {
	if m := blobPath.FindStringSubmatch(r.Path); m != nil {
		return digest.Digest(m[1])
	}
	return ""
}

var blobPath = regexp.MustCompile(`/blobs/(sha256:[0-9a-f]{64})$`)

// Proxy is in front of the real registry: it logs every request, slows bodies down, and holds back the rest
// of a blob until the test releases it.
type Proxy struct {
	Addr string // 127.0.0.1:port

	t       testing.TB
	server  *http.Server
	backend *url.URL

	mu    sync.Mutex
	log   []*Request
	rate  int64 // bytes a second and body; 0: as fast as it goes
	gates map[digest.Digest]*gate
	// missing are the blobs that a repository lacks, by their paths.
	missing map[string]bool
}

// gate holds a blob's bytes from an offset on.
type gate struct {
	after   int64
	open    chan struct{}
	reached chan struct{} // closed when a body came to the offset
	once    sync.Once
}

// NewProxy starts a proxy on a free port in front of the registry at backend (host:port).
func NewProxy(t testing.TB, backend string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), t: t, backend: &url.URL{Scheme: "http", Host: backend},
		gates: map[digest.Digest]*gate{}}
	p.serve(l)
	t.Cleanup(func() { p.OpenAll(); p.Stop() })
	return p
}

func (p *Proxy) serve(l net.Listener) {
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(p.backend)
			r.Out.Host = r.In.Host // the registry puts it into Location
		},
		ModifyResponse: p.wrapBody,
		FlushInterval:  -1, // clients must see the first part of a held blob
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				w.WriteHeader(http.StatusBadGateway)
			}
		},
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entry := &Request{Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range")}
		p.mu.Lock()
		p.log = append(p.log, entry)
		missing := p.missing[r.URL.Path]
		p.mu.Unlock()
		if missing {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		reverse.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, entry)))
		p.mu.Lock()
		entry.Done = true
		p.mu.Unlock()
	})}
	p.mu.Lock()
	p.server = s
	p.mu.Unlock()
	go func() { _ = s.Serve(l) }()
}

type requestKey struct{}

func (p *Proxy) wrapBody(resp *http.Response) error {
	entry, _ := resp.Request.Context().Value(requestKey{}).(*Request)
	if entry == nil {
		return nil
	}
	p.mu.Lock()
	entry.Status = resp.StatusCode
	p.mu.Unlock()
	if resp.Request.Method == http.MethodGet {
		resp.Body = &slowBody{ReadCloser: resp.Body, p: p, entry: entry, ctx: resp.Request.Context(),
			at: rangeStart(resp)}
	}
	return nil
}

// rangeStart is the offset in the blob of the first byte of the body.
func rangeStart(resp *http.Response) int64 {
	if resp.StatusCode != http.StatusPartialContent {
		return 0
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
	n, _ := strconv.ParseInt(first, 10, 64)
	return n
}

// slowBody is a response's body at the proxy's pace.
type slowBody struct {
	io.ReadCloser
	p     *Proxy
	entry *Request
	ctx   context.Context
	at    int64 // offset in the blob
}

func (b *slowBody) Read(buf []byte) (int, error) {
	b.p.mu.Lock()
	rate, g := b.p.rate, b.p.gates[b.entry.Blob()]
	b.p.mu.Unlock()
	if g != nil {
		if left := g.after - b.at; left > 0 {
			buf = buf[:min(int64(len(buf)), left)]
		} else {
			g.once.Do(func() { close(g.reached) })
			select {
			case <-g.open:
			case <-b.ctx.Done():
				return 0, b.ctx.Err()
			}
		}
	}
	if rate > 0 {
		buf = buf[:min(int64(len(buf)), max(rate/50, 1))]
	}
	start := time.Now()
	n, err := b.ReadCloser.Read(buf)
	b.at += int64(n)
	b.p.mu.Lock()
	b.entry.Bytes += int64(n)
	b.p.mu.Unlock()
	if rate > 0 && n > 0 {
		wait := time.Duration(int64(n))*time.Second/time.Duration(rate) - time.Since(start)
		select {
		case <-time.After(wait):
		case <-b.ctx.Done():
		}
	}
	return n, err
}

// Miss makes the registry lack these blobs in one of its repositories. Without blobs it lacks none.
func (p *Proxy) Miss(repository string, blobs ...digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missing = map[string]bool{}
	for _, d := range blobs {
		p.missing["/v2/"+repository+"/blobs/"+d.String()] = true
	}
}

// SetRate slows each body down to so many bytes a second; 0 ends that.
func (p *Proxy) SetRate(rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
}

// Hold serves the first after bytes of a blob and keeps the rest until Release.
func (p *Proxy) Hold(d digest.Digest, after int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gates[d] = &gate{after: after, open: make(chan struct{}), reached: make(chan struct{})}
}

// Reached reports whether a body of the held blob has come to the offset where it is held.
func (p *Proxy) Reached(d digest.Digest) bool {
	p.mu.Lock()
	g := p.gates[d]
	p.mu.Unlock()
	if g == nil {
		return false
	}
	select {
	case <-g.reached:
		return true
	default:
		return false
	}
}

// Release sends the rest of a held blob.
func (p *Proxy) Release(d digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.gates[d]; g != nil {
		close(g.open)
		delete(p.gates, d)
	}
}

// OpenAll releases every blob.
func (p *Proxy) OpenAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, g := range p.gates {
		close(g.open)
		delete(p.gates, d)
	}
}

// Requests returns a copy of the log.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Request, len(p.log))
	for i, r := range p.log {
		out[i] = *r
	}
	return out
}

// ResetLog forgets the requests until now.
func (p *Proxy) ResetLog() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = nil
}

// BlobGets are the requests in the log that asked for a blob's bytes.
func (p *Proxy) BlobGets() []Request {
	var gets []Request
	for _, r := range p.Requests() {
		if r.Method == http.MethodGet && r.Blob() != "" {
			gets = append(gets, r)
		}
	}
	return gets
}

// Sent is how many bytes of blobs went out since ResetLog.
func (p *Proxy) Sent() int64 {
	var n int64
	for _, r := range p.BlobGets() {
		n += r.Bytes
	}
	return n
}

// Stop makes the registry unreachable: the port is closed and connections are cut.
func (p *Proxy) Stop() {
	p.mu.Lock()
	s := p.server
	p.mu.Unlock()
	_ = s.Close()
}

// Restart makes it reachable again at the same address.
func (p *Proxy) Restart() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.Addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.serve(l)
}

// Ref is the reference of an image of this registry by its address.
func (p *Proxy) Ref(name string) string { return p.Addr + "/" + name }

// TestRegistry is the name that leads containerd here through hosts.toml.
const TestRegistry = "registry.test"

// writeHosts points the registry's own address and registry.test to it in a directory of hosts.toml files.
func writeHosts(hosts, addr string) error {
	for _, name := range []string{TestRegistry, addr} {
		dir := filepath.Join(hosts, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		text := fmt.Sprintf(
			"server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", addr)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
