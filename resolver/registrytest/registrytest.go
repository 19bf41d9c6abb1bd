// Package registrytest is a registry in memory for tests: it serves what it was given over HTTP on
// loopback, keeps a log of what it was asked, and misbehaves as told.
//
// It owns nothing on disk. Its invariant: without a Fault it behaves as the distribution
// specification says.
//
// The surprising rule: it does not check what it is given. A test that wants a lying registry hands
// it lies.
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
	// Host is its name in references, for example 127.0.0.1:40001.
	Host string
	// Fault, when set, sees every request first and says whether it answered. Set it before the
	// first request.
	Fault Fault
	// Guard, when set, sees what Fault let pass and says whether it refused; see TokenServer. Set
	// it before the first request.
	Guard Fault
	// CA is the certificate of a registry with TLS, in PEM.
	CA []byte

	server *httptest.Server

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string]entry // by digest and by tag
	log       []string
}

type entry struct {
	mediaType string
	data      []byte
	digest    digest.Digest
}

// New starts a registry that ends with the test.
func New(tb testing.TB) *Registry {
	r := Start()
	tb.Cleanup(r.Close)
	return r
}

// Start starts a registry that runs until Close.
func Start() *Registry {
	return start(nil)
}

// NewPlain starts a registry with HTTP/1. configure sees the server before it starts.
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

// NewTLS starts a registry with HTTPS and HTTP/2. configure, unless nil, sees the server before it
// starts.
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

// quiet takes what a server says about connections that tests break.
var quiet = log.New(io.Discard, "", 0)

// Close ends the registry and waits for what it is answering.
func (r *Registry) Close() { r.server.Close() }

// Blob adds a blob and returns its descriptor.
func (r *Registry) Blob(mediaType string, data []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Manifest adds a manifest or an index, by its digest and under tag unless that is empty.
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

// Image adds an image of these layers, whose diff IDs are given, for a platform such as {OS:
// "linux", Architecture: "amd64"}.
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

// JSON is the encoding of v, which must have one.
func JSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// Requests are the requests so far, as "GET /v2/x/blobs/sha256:… bytes=5-"; the range is missing
// where none was asked for.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.log...)
}

// Count is how many requests so far contain s.
func (r *Registry) Count(s string) int {
	n := 0
	for _, line := range r.Requests() {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

var route = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.log = append(r.log, strings.TrimSpace(fmt.Sprintf("%s %s %s", req.Method, req.URL.Path, req.Header.Get("Range"))))
	r.mu.Unlock()
	if r.Fault != nil && r.Fault(w, req) || r.Guard != nil && r.Guard(w, req) {
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
