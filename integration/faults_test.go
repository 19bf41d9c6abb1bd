package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Faulty stands before a Registry and answers some requests in its place.
type Faulty struct {
	Addr string // 127.0.0.1:port

	mu     sync.Mutex
	answer func(http.ResponseWriter, *http.Request) bool
}

// NewFaulty starts it. What it does not answer itself, r answers and logs.
func NewFaulty(t testing.TB, r *Registry) *Faulty {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Faulty{Addr: l.Addr().String()}
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Addr})
	pass.FlushInterval = -1
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	s := &http.Server{ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			f.mu.Lock()
			answer := f.answer
			f.mu.Unlock()
			if answer == nil || !answer(w, req) {
				pass.ServeHTTP(w, req)
			}
		})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return f
}

// Answer sets a function that answers a request before the proxy does. It reports whether it did. nil: none.
func (f *Faulty) Answer(answer func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

// Ref is the reference of an image by this address.
func (f *Faulty) Ref(name string) string { return f.Addr + "/" + name }

// onBlob answers GETs of one blob; of every blob when d is empty.
func onBlob(d digest.Digest, answer func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter,
	*http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		asked := Request{Path: r.URL.Path}.Blob()
		if r.Method != http.MethodGet || asked == "" || (d != "" && asked != d) {
			return false
		}
		answer(w, r)
		return true
	}
}

// garbage answers with as many bytes as were asked for, none of them right.
func garbage(size int64) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bytes.Repeat([]byte{0x55}, int(size))))
	}
}

// cut ends the connection in the middle of the answer.
func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "100000")
	_, _ = w.Write([]byte("some"))
	panic(http.ErrAbortHandler)
}

// status answers with a status.
func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(code)
		return true
	}
}

// blobLayer is a layer for rawImage: its blob as it is, and the diff ID that the config claims.
type blobLayer struct {
	blob   []byte
	diffID digest.Digest
}

// gzipLayer is the layer of entries, as it should be.
func gzipLayer(t testing.TB, entries ...Entry) blobLayer {
	t.Helper()
	stream, err := tarStream(entries)
	if err != nil {
		t.Fatal(err)
	}
	return blobLayer{gzipped(t, stream), digest.FromBytes(stream)}
}

func gzipped(t testing.TB, stream []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(stream); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

// rawImage is an image of gzip layers that need not be right.
func rawImage(t testing.TB, layers ...blobLayer) BuiltImage {
	t.Helper()
	b := BuiltImage{Blobs: map[digest.Digest][]byte{}}
	marshal := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, l := range layers {
		b.Layers = append(b.Layers, b.add(ocispec.MediaTypeImageLayerGzip, l.blob))
		b.DiffIDs = append(b.DiffIDs, l.diffID)
	}
	b.Config = b.add(ocispec.MediaTypeImageConfig, marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: b.DiffIDs},
	}))
	b.Manifest = b.add(ocispec.MediaTypeImageManifest, marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: b.Config,
		Layers: b.Layers,
	}))
	return b
}
