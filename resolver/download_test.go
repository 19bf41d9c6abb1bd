package resolver

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

const testChunk = 64 << 10

// bigSize is not a multiple of testChunk.
const bigSize = 20*testChunk + 1000

// large makes a registry with an image of one layer, and a resolver that downloads it in ranges of
// testChunk.
func large(tb testing.TB) (*registrytest.Registry, []byte, *Resolver) {
	tb.Helper()
	reg := registrytest.New(tb)
	return reg, bigImage(reg), ranged(tb)
}

func bigImage(reg *registrytest.Registry) []byte {
	data := random(bigSize)
	d := reg.Blob(ocispec.MediaTypeImageLayerGzip, data)
	reg.Image("1", amd64, []ocispec.Descriptor{d}, []digest.Digest{d.Digest})
	return data
}

func ranged(tb testing.TB, edits ...func(*Options)) *Resolver {
	r := newResolver(tb, func(o *Options) {
		o.ChunkSize, o.StallTimeout = testChunk, 300*time.Millisecond
		for _, edit := range edits {
			edit(o)
		}
	})
	r.divided = true
	return r
}

func layerPath(data []byte) string { return "/blobs/" + digest.FromBytes(data).String() }

func holds(tb testing.TB, store content.Store, data []byte) {
	tb.Helper()
	got, err := content.ReadBlob(context.Background(), store,
		ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
	if err != nil || !bytes.Equal(got, data) {
		tb.Fatalf("the blob is not what it was: %v", err)
	}
}

// meter counts the bytes of the bodies that a registry sends for paths with part.
func meter(part string, n *atomic.Int64, next registrytest.Fault) registrytest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) || next == nil {
			return false
		}
		return next(&counting{ResponseWriter: w, n: n}, r)
	}
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *counting) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

func TestRanges(t *testing.T) {
	reg, data, r := large(t)
	var now, most atomic.Int32
	reg.Fault = registrytest.On(layerPath(data), func(http.ResponseWriter, *http.Request) bool {
		most.Store(max(most.Load(), now.Add(1)))
		time.Sleep(5 * time.Millisecond)
		now.Add(-1)
		return false
	})
	store := newStore(t)
	var mu sync.Mutex
	var last int64
	img, err := pull(t.Context(), r, store, reg.Host+"/x:1", &FetchOptions{Progress: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Descriptor.Digest == digest.FromBytes(data) {
			if e.Offset < last {
				t.Errorf("offset %d after %d", e.Offset, last)
			}
			last = e.Offset
		}
	}})
	if err != nil || img.Fetched != 3 || last != bigSize {
		t.Fatal(err, last)
	}
	holds(t, store, data)
	if n := reg.Count(layerPath(data) + " bytes="); n != 21 || most.Load() < 2 || most.Load() > 4 {
		t.Errorf("%d ranges, at most %d at once", n, most.Load())
	}
	one := registrytest.New(t)
	data = bigImage(one)
	if _, err := pull(t.Context(), newResolver(t, func(o *Options) { o.Ranges = 1 }), newStore(t), one.Host+"/x:1",
		nil); err != nil || one.Count("bytes=") != 0 {
		t.Error(err, one.Requests())
	}
}

// TestRangesEndless checks that a body that has brought all bytes but does not end delays neither
// the bytes nor the download.
func TestRangesEndless(t *testing.T) {
	const end = 2 * testChunk // of the second range
	reg, data, _ := large(t)
	r := ranged(t, func(o *Options) { o.StallTimeout = 20 * time.Second })
	first, shown := make(chan struct{}), make(chan struct{})
	var late atomic.Bool
	reg.Fault = registrytest.On(layerPath(data), func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Range") != fmt.Sprintf("bytes=%d-%d", testChunk, end-1) {
			return false
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", testChunk, end-1, bigSize))
		w.WriteHeader(http.StatusPartialContent)
		select {
		case <-first:
		case <-req.Context().Done():
			return true
		}
		time.Sleep(20 * time.Millisecond) // until the writer waits for these bytes
		_, _ = w.Write(data[testChunk:end])
		w.(http.Flusher).Flush()
		select {
		case <-shown:
		case <-req.Context().Done():
			late.Store(true)
		}
		<-req.Context().Done()
		return true
	})
	tellFirst, tellShown := sync.OnceFunc(func() { close(first) }), sync.OnceFunc(func() { close(shown) })
	took := timed(t, r, reg, [][]byte{data}, &FetchOptions{Progress: func(e Event) {
		if e.Descriptor.Digest != digest.FromBytes(data) {
			return
		}
		if e.Offset >= testChunk {
			tellFirst()
		}
		if e.Offset >= end {
			tellShown()
		}
	}})
	if took > 10*time.Second || late.Load() {
		t.Errorf("%v; the bytes waited for the end of the body: %v", took, late.Load())
	}
}

// TestRangesBound checks that several large blobs complete although they share the memory for
// ranges.
func TestRangesBound(t *testing.T) {
	reg := registrytest.New(t)
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for i := range 6 {
		l := reg.Blob(ocispec.MediaTypeImageLayerGzip, random(bigSize+i))
		layers, ids = append(layers, l), append(ids, l.Digest)
	}
	reg.Image("1", amd64, layers, ids)
	for _, chunk := range []int64{testChunk, 200_000} {
		r := newResolver(t, func(o *Options) { o.ChunkSize, o.Ranges = chunk, 2 })
		if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestD08Ranges checks registries that answer ranges wrongly: the blob is right in the end, or
// nothing is kept.
func TestD08Ranges(t *testing.T) {
	later := func(f registrytest.Fault) registrytest.Fault { // the first range gets a correct answer
		return func(w http.ResponseWriter, r *http.Request) bool {
			return !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") && f(w, r)
		}
	}
	evil := func(data []byte) []byte {
		changed := bytes.Clone(data)
		changed[bigSize/2] ^= 1
		return changed
	}
	for _, tc := range []struct {
		testName string
		fault    func(data []byte) registrytest.Fault
		class    error
	}{
		{"200 to a range", registrytest.NoRanges, nil},
		{"200 to a later range", func(d []byte) registrytest.Fault { return later(registrytest.NoRanges(d)) }, nil},
		{"wrong start", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d,
				func(_, last, size int) string { return fmt.Sprintf("bytes 0-%d/%d", last, size) })
		}, nil},
		{"wrong total", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d,
				func(s, last, size int) string { return fmt.Sprintf("bytes %d-%d/%d", s, last, size+1) })
		}, nil},
		{"total unknown", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d,
				func(s, last, _ int) string { return fmt.Sprintf("bytes %d-%d/*", s, last) })
		}, nil},
		{"end behind what was asked for", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d,
				func(s, last, size int) string { return fmt.Sprintf("bytes %d-%d/%d", s, last+1, size) })
		}, nil},
		{"no Content-Range", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d, func(_, _, _ int) string { return "" })
		}, nil},
		{"Content-Range of 2^64", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d, func(_, _, _ int) string { return "bytes 18446744073709551616-1/1" })
		}, nil},
		{"416", func([]byte) registrytest.Fault { return registrytest.Unsatisfiable }, nil},
		{"416 to a later range", func([]byte) registrytest.Fault { return later(registrytest.Unsatisfiable) }, nil},
		{"multipart", registrytest.Multipart, nil},
		{"206 without a range", func(d []byte) registrytest.Fault {
			return registrytest.Answer(206, d, "Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(d)-1, len(d)))
		}, nil},
		{"206 without a range, cut short", func(d []byte) registrytest.Fault {
			return registrytest.Answer(206, d[:9], "Content-Range", fmt.Sprintf("bytes 0-8/%d", len(d)))
		}, errdefs.ErrDataLoss},
		{"ranges of changed content", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(evil(d),
				func(s, last, size int) string { return fmt.Sprintf("bytes %d-%d/%d", s, last, size) })
		}, nil},
		{"changed content", func(d []byte) registrytest.Fault { return registrytest.NoRanges(evil(d)) },
			errdefs.ErrDataLoss},
		{"short ranges", func(d []byte) registrytest.Fault {
			return func(w http.ResponseWriter, r *http.Request) bool { // a proxy with smaller blocks
				var from, to int
				if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n != 2 || to-from < 40_000 {
					return false
				}
				r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, from+39_999))
				return false
			}
		}, nil},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg, data, r := large(t)
			reg.Fault = registrytest.On(layerPath(data), tc.fault(data))
			store := newStore(t)
			_, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil)
			if !isClass(err, tc.class) {
				t.Fatal(err)
			}
			if n := reg.Count(layerPath(data)); n > 60 {
				t.Errorf("%d requests", n)
			}
			if err == nil {
				holds(t, store, data)
				return
			}
			if all, err := store.ListStatuses(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("left behind: %+v, %v", all, err)
			}
		})
	}
}

// TestD07WrongBlob checks that a wrong blob is requested once more from its first byte, and then no
// more.
func TestD07WrongBlob(t *testing.T) {
	chunked := func(body []byte) registrytest.Fault { // no Content-Length
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.(http.Flusher).Flush()
			_, _ = w.Write(body)
			return true
		}
	}
	flipped := func(d []byte) []byte {
		d = bytes.Clone(d)
		d[7] ^= 1
		return d
	}
	for _, tc := range []struct {
		testName string
		fault    func(data []byte) registrytest.Fault
		class    error
		requests int // at most
	}{
		{"flipped bit", func(d []byte) registrytest.Fault { return registrytest.NoRanges(flipped(d)) },
			errdefs.ErrDataLoss, 2},
		{"flipped bit, once",
			func(d []byte) registrytest.Fault { return registrytest.Times(1, registrytest.NoRanges(flipped(d))) }, nil,
			2},
		{"a byte more", func(d []byte) registrytest.Fault { return registrytest.NoRanges(append(bytes.Clone(d), 0)) },
			errdefs.ErrDataLoss, 2},
		{"a byte more, no length", func(d []byte) registrytest.Fault { return chunked(append(bytes.Clone(d), 0)) },
			errdefs.ErrDataLoss, 2},
		{"a byte less", func(d []byte) registrytest.Fault { return registrytest.NoRanges(d[:len(d)-1]) },
			errdefs.ErrDataLoss, 2},
		// the third request is for the last byte
		{"a byte less, no length", func(d []byte) registrytest.Fault { return chunked(d[:len(d)-1]) }, nil, 3},
		{"endless", func(d []byte) registrytest.Fault {
			return func(w http.ResponseWriter, r *http.Request) bool {
				for r.Context().Err() == nil {
					if _, err := w.Write(d); err != nil {
						break
					}
				}
				return true
			}
		}, errdefs.ErrDataLoss, 2},
		{"empty", func([]byte) registrytest.Fault { return chunked(nil) }, errdefs.ErrUnavailable, 3},
		{"cut", func(d []byte) registrytest.Fault { return registrytest.Times(1, registrytest.Cut(d, 300_000)) }, nil,
			2},
		{"HTTP/1.0", func(d []byte) registrytest.Fault {
			return registrytest.Times(1, func(w http.ResponseWriter, _ *http.Request) bool {
				conn, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					return false
				}
				defer conn.Close()
				_, _ = rw.WriteString("HTTP/1.0 200 OK\r\n\r\n")
				_, _ = rw.Write(d[:200_000])
				rw.Flush()
				return true
			})
		}, nil, 2},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.New(t)
			_, all := image(reg)
			data := all[0]
			fault := tc.fault(data)
			if tc.testName == "a byte less, no length" {
				fault = registrytest.Times(1, fault)
			}
			reg.Fault = registrytest.On(layerPath(data), fault)
			store := newStore(t)
			_, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", nil)
			if !isClass(err, tc.class) {
				t.Fatal(err)
			}
			if n := reg.Count(layerPath(data)); n > tc.requests {
				t.Errorf("%d requests: %q", n, reg.Requests())
			}
			if err == nil {
				holds(t, store, data)
			}
		})
	}
}

// TestD07HTTP2 breaks streams in the ways of HTTP/2.
func TestD07HTTP2(t *testing.T) {
	for _, tc := range []struct {
		testName string
		fault    func(data []byte) registrytest.Fault
	}{
		{"RST_STREAM",
			func(d []byte) registrytest.Fault { return registrytest.Times(3, registrytest.Cut(d, testChunk/2)) }},
		{"D20 GOAWAY", func([]byte) registrytest.Fault {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Connection", "close") // the server sends GOAWAY
				return false
			}
		}},
		{"D20 stall",
			func(d []byte) registrytest.Fault { return registrytest.Times(2, registrytest.Stall(d, testChunk/2)) }},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.NewTLS(t, nil)
			data := bigImage(reg)
			reg.Fault = registrytest.On(layerPath(data), tc.fault(data))
			dir := registrytest.CertsDir(t, reg.Host, map[string][]byte{"ca.crt": reg.CA, "hosts.toml": fmt.Appendf(nil,
				"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", reg.Host)})
			r := ranged(t, func(o *Options) { o.HostsDir = dir })
			store := newStore(t)
			if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
				t.Fatal(err)
			}
			holds(t, store, data)
		})
	}
}
