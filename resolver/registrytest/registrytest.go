// Package registrytest is a registry in memory for tests. It serves what a test puts in, over HTTP
// on loopback, logs its requests, and misbehaves in the ways that a test sets.
//
// It owns nothing on disk.
//
// Its invariant: without a Fault it behaves as the distribution specification requires.
//
// The surprising rule: it does not check what a test puts in. A test that needs a lying registry
// puts in lies.
package registrytest

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a running registry.
type Registry struct {
	// Host is the name of the registry in references, for example 127.0.0.1:40001.
	Host string
	// Fault sees every request first and reports whether it has answered it. nil: none. Set it
	// before the first request, with SetFault if requests come from other processes.
	Fault Fault
	// Guard sees the requests that Fault passes on, and reports whether it has refused them; see
	// TokenServer. nil: none. Set it before the first request.
	Guard Fault
	// CA is the certificate of a registry with TLS, in PEM. nil: the registry has no TLS.
	CA []byte

	server *httptest.Server

	mu        sync.Mutex // guards the fields below
	blobs     map[digest.Digest][]byte
	manifests map[string]entry // by digest and by tag
	log       []string
}

type entry struct {
	mediaType string
	data      []byte
	digest    digest.Digest
}

// New starts a registry that stops at the end of the test.
func New(tb testing.TB) *Registry {
	r := Start()
	tb.Cleanup(r.Close)
	return r
}

// Start starts a registry that runs until Close.
func Start() *Registry {
	return start(nil)
}

// NewPlain starts a registry with HTTP/1 that stops at the end of the test. configure, unless nil, is
// called with the server before it starts.
func NewPlain(tb testing.TB, configure func(*httptest.Server)) *Registry {
	r := start(configure)
	tb.Cleanup(r.Close)
	return r
}

func start(configure func(*httptest.Server)) *Registry {
	r := &Registry{blobs: map[digest.Digest][]byte{}, manifests: map[string]entry{}}
	r.server = httptest.NewUnstartedServer(r)
	r.server.Config.ErrorLog = quiet
	if configure != nil {
		configure(r.server)
	}
	r.server.Start()
	r.Host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

// NewTLS starts a registry with HTTPS and HTTP/2 that stops at the end of the test. configure, unless
// nil, is called with the server before it starts.
func NewTLS(tb testing.TB, configure func(*httptest.Server)) *Registry {
	r := &Registry{blobs: map[digest.Digest][]byte{}, manifests: map[string]entry{}}
	r.server = httptest.NewUnstartedServer(r)
	r.server.EnableHTTP2 = true
	r.server.Config.ErrorLog = quiet
	if configure != nil {
		configure(r.server)
	}
	r.server.StartTLS()
	tb.Cleanup(r.Close)
	r.Host = strings.TrimPrefix(r.server.URL, "https://")
	r.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	return r
}

// quiet discards what a server logs about connections that tests cut.
var quiet = log.New(io.Discard, "", 0)

// Close stops the registry and waits for its running requests.
func (r *Registry) Close() { r.server.Close() }

// Blob adds a blob and returns its descriptor.
func (r *Registry) Blob(mediaType string, data []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Manifest adds a manifest or an index under its digest and, unless tag is "", under the tag.
func (r *Registry) Manifest(tag, mediaType string, data []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.manifests[d.String()] = entry{mediaType, data, d}
	if tag != "" {
		r.manifests[tag] = entry{mediaType, data, d}
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Image adds an image with these layers and diff IDs, for a platform such as {OS: "linux",
// Architecture: "amd64"}.
func (r *Registry) Image(tag string, p ocispec.Platform, layers []ocispec.Descriptor,
	diffIDs []digest.Digest,
) ocispec.Descriptor {
	config := ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}}
	desc := r.Manifest(tag, ocispec.MediaTypeImageManifest, JSON(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    r.Blob(ocispec.MediaTypeImageConfig, JSON(config)),
		Layers:    layers,
	}))
	desc.Platform = &p
	return desc
}

// Index adds an index of these manifests.
func (r *Registry) Index(tag string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	return r.Manifest(tag, ocispec.MediaTypeImageIndex, JSON(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests,
	}))
}

// JSON returns the JSON encoding of v and panics if there is none.
func JSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// Requests returns the requests so far, such as "GET /v2/x/blobs/sha256:... bytes=5-". The range is
// missing if a request has none.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.log...)
}

// Count returns the number of requests so far that contain s.
func (r *Registry) Count(s string) int {
	n := 0
	for _, line := range r.Requests() {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

// SetFault sets Fault. The race detector knows that this happens before any later request, also if
// another process makes the request.
func (r *Registry) SetFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Fault = f
}

var route = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)

// ServeHTTP handles a request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.log = append(r.log, strings.TrimSpace(fmt.Sprintf("%s %s %s", req.Method, req.URL.Path, req.Header.Get("Range"))))
	fault := r.Fault
	r.mu.Unlock()
	if fault != nil && fault(w, req) || r.Guard != nil && r.Guard(w, req) {
		return
	}
	m := route.FindStringSubmatch(req.URL.Path)
	if m == nil {
		http.NotFound(w, req)
		return
	}
	r.mu.Lock()
	e, ok := r.manifests[m[3]]
	if m[2] == "blobs" {
		e = entry{mediaType: "application/octet-stream", digest: digest.Digest(m[3])}
		e.data, ok = r.blobs[digest.Digest(m[3])]
	}
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", e.mediaType)
	w.Header().Set("Docker-Content-Digest", e.digest.String())
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(e.data))
}
