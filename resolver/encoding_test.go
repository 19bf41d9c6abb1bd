package resolver

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// encodedIn returns data in a content encoding. "raw" is deflate without the header of zlib.
func encodedIn(tb testing.TB, coding string, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "deflate":
		w = zlib.NewWriter(&buf)
	case "raw":
		w, _ = flate.NewWriter(&buf, 5)
	case "zstd":
		w, _ = zstd.NewWriter(&buf, zstd.WithWindowSize(1<<20))
	default:
		return data
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// mixed adds an image whose layers are gzip, plain, gzip with a plain media type, and plain with
// the media type of zstd.
func mixed(tb testing.TB, reg *registrytest.Registry) {
	tb.Helper()
	var layers []ocispec.Descriptor
	var diffIDs []digest.Digest
	for i, mediaType := range []string{
		ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer,
		ocispec.MediaTypeImageLayerZstd,
	} {
		data := append(random(100_000+i), bytes.Repeat([]byte("text "), 20_000)...)
		if i%2 == 0 {
			data = encodedIn(tb, "gzip", data)
		}
		layers = append(layers, reg.Blob(mediaType, data))
		diffIDs = append(diffIDs, digest.FromBytes(data))
	}
	reg.Image("1", amd64, layers, diffIDs)
}

// proxy is a proxy in front of a registry.
type proxy struct {
	what   string // the answers to paths with it are changed; "": all
	coding string // of the body; "": the body is not changed
	header string // Content-Encoding
	length bool   // whether Content-Length is sent
	ranges bool   // whether ranges reach the registry; their answers only get the header
	cut    int32  // number of answers that break in the middle
}

func (p *proxy) fault(tb testing.TB, back http.Handler) registrytest.Fault {
	var cut atomic.Int32
	cut.Store(p.cut)
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Accept-Encoding") != "identity" {
			tb.Errorf("asked for encodings %q", r.Header["Accept-Encoding"])
		}
		if !p.ranges {
			r.Header.Del("Range")
		}
		rec := httptest.NewRecorder()
		back.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		if strings.Contains(r.URL.Path, p.what) {
			w.Header().Set("Content-Encoding", p.header)
			if rec.Code == http.StatusOK {
				body = encodedIn(tb, p.coding, body)
			}
		}
		w.Header().Del("Content-Length")
		if p.length {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		w.WriteHeader(rec.Code)
		if len(body) > 1000 && cut.Add(-1) >= 0 {
			_, _ = w.Write(body[:len(body)*2/3])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		for len(body) > 0 { // without a length, in chunks
			n, err := w.Write(body[:min(len(body), 30_000)])
			if err != nil { // the client has closed the connection
				return true
			}
			body = body[n:]
			w.(http.Flusher).Flush()
		}
		return true
	}
}

// TestContentEncoding checks that what a proxy compressed is decompressed, that what a registry
// only labels as compressed is not, and that the digest decides between the two.
func TestContentEncoding(t *testing.T) {
	t.Parallel()
	rows := []struct {
		testName string
		proxy    proxy
	}{
		{"a registry that labels layers", proxy{what: "/blobs/", header: "gzip"}},
		{"with lengths", proxy{what: "/blobs/", header: "gzip", length: true}},
		{"with ranges, cut", proxy{what: "/blobs/", header: "gzip", length: true, ranges: true, cut: 2}},
		{"without lengths, cut", proxy{what: "/blobs/", header: "gzip", ranges: true, cut: 2}},
		{"a label on everything", proxy{header: "gzip"}},
		{"an unknown label", proxy{header: "br", length: true}},
		{"a label of zstd", proxy{what: "/blobs/", header: "zstd", length: true}},
		{"x-gzip", proxy{coding: "gzip", header: "X-GZIP"}},
		{"with identity", proxy{coding: "gzip", header: "identity, gzip"}},
		{"identity", proxy{header: "identity"}},
	}
	for _, coding := range []string{"gzip", "deflate", "raw", "zstd"} {
		header := coding
		if coding == "raw" {
			header = "deflate"
		}
		for _, length := range []bool{false, true} {
			name := fmt.Sprintf("%s, length %v", coding, length)
			rows = append(rows, []struct {
				testName string
				proxy    proxy
			}{
				{name, proxy{coding: coding, header: header, length: length}},
				{name + ", cut", proxy{coding: coding, header: header, length: length, cut: 2}},
				{name + ", ranges, cut", proxy{coding: coding, header: header, length: length, ranges: true, cut: 2}},
			}...)
		}
	}
	for _, row := range rows {
		t.Run(row.testName, func(t *testing.T) {
			t.Parallel()
			back, front := registrytest.New(t), registrytest.New(t)
			mixed(t, back)
			front.Fault = row.proxy.fault(t, back)
			store := newStore(t)
			img, err := pull(t.Context(), quick(t), store, front.Host+"/x:1", nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range append(img.Layers, img.Config, img.Manifest) {
				if info, err := store.Info(t.Context(), l.Digest); err != nil || info.Size != l.Size {
					t.Errorf("blob %s: %+v, %v", l.Digest, info, err)
				}
			}
		})
	}
}

// TestEncodedTwice checks that a gzip layer that a proxy compressed again is decoded once.
func TestEncodedTwice(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	layer := encodedIn(t, "gzip", bytes.Repeat([]byte("text "), 20_000))
	l := reg.Blob(ocispec.MediaTypeImageLayerGzip, layer)
	reg.Image("1", amd64, []ocispec.Descriptor{l}, []digest.Digest{l.Digest})
	twice := encodedIn(t, "zstd", encodedIn(t, "gzip", layer))
	reg.Fault = registrytest.On(l.Digest.String(), registrytest.Answer(200, twice, "Content-Encoding", "gzip, zstd"))
	if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	if n := reg.Count("blobs/" + l.Digest.String()); n != 1 {
		t.Errorf("%d requests for the layer", n)
	}
}

// TestEncodingBombs checks that the size of a blob bounds the bytes that are read and decoded.
func TestEncodingBombs(t *testing.T) {
	t.Parallel()
	empty, zeros := encodedIn(t, "gzip", nil), encodedIn(t, "gzip", make([]byte, 16<<20))
	stream := func(coding string, length string, part []byte) registrytest.Fault {
		return registrytest.On("/blobs/", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Encoding", coding)
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			for sent := 0; sent < 256<<20; sent += len(part) {
				if _, err := w.Write(part); err != nil {
					return true
				}
			}
			t.Error("everything was read")
			return true
		})
	}
	for _, row := range []struct {
		testName string
		fault    registrytest.Fault
	}{
		{"zeros", registrytest.On("/blobs/", registrytest.Answer(200, zeros, "Content-Encoding", "gzip"))},
		{"zeros in zeros", registrytest.On("/blobs/", registrytest.Answer(200, encodedIn(t, "gzip", zeros),
			"Content-Encoding", "gzip, gzip"))},
		{"members without a byte", stream("gzip", "", bytes.Repeat(empty, 1000))},
		{"a label", stream("gzip", "", zeros)},
		{"many encodings", stream("gzip, gzip, gzip, gzip", "1000000000", zeros)},
		{"a window of 1 GiB", registrytest.On("/blobs/", registrytest.Answer(200, []byte{
			0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x01, 0x00, 0x00,
		}, "Content-Encoding", "zstd"))},
		{"a manifest", registrytest.On("/manifests/", registrytest.Answer(200, zeros, "Content-Encoding", "gzip"))},
	} {
		t.Run(row.testName, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			image(reg)
			reg.Fault = row.fault
			if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); !errdefs.IsDataLoss(err) {
				t.Fatalf("%v is no loss of data", err)
			}
		})
	}
}
