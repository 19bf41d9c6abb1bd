package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// bigSize is no multiple of testChunk.
const bigSize = 20*testChunk + 1000

// large is a registry with an image of one layer, to be downloaded in ranges of testChunk.
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

func ranged(tb testing.TB) *Resolver {
	return client(tb, func(o *Options) { o.ChunkSize, o.StallTimeout = testChunk, 300*time.Millisecond })
}

func layerPath(data []byte) string { return "/blobs/" + digest.FromBytes(data).String() }

func holds(tb testing.TB, store content.Store, data []byte) {
	tb.Helper()
	got, err := content.ReadBlob(context.Background(), store, ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
	if err != nil || !bytes.Equal(got, data) {
		tb.Fatalf("the blob is not what it was: %v", err)
	}
}

// meter counts the bytes of bodies that a registry sent below part.
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
	if _, err := pull(t.Context(), client(t, func(o *Options) { o.Ranges = 1 }), newStore(t), one.Host+"/x:1", nil); err != nil || one.Count("bytes=") != 0 {
		t.Error(err, one.Requests())
	}
}

// TestRangesBound: many large blobs share the memory of one fetch, and none starves.
func TestRangesBound(t *testing.T) {
	reg := registrytest.New(t)
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for i := range 6 {
		l := reg.Blob(ocispec.MediaTypeImageLayerGzip, random(bigSize+i))
		layers, ids = append(layers, l), append(ids, l.Digest)
	}
	reg.Image("1", amd64, layers, ids)
	r := ranged(t)
	b := newBuffers(&r.opts)
	if cap(b.free) != maxBuffered/testChunk {
		t.Errorf("%d buffers", cap(b.free))
	}
	r.opts.ChunkSize = maxBuffered // as few buffers as there may be: Ranges
	if b := newBuffers(&r.opts); cap(b.free) != r.opts.Ranges {
		t.Errorf("%d buffers", cap(b.free))
	}
	for _, chunk := range []int64{testChunk, 200_000} {
		r := client(t, func(o *Options) { o.ChunkSize, o.Ranges = chunk, 2 })
		if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestD08Ranges: a registry that does with ranges what it likes. The blob is right in the end, or nothing is kept.
func TestD08Ranges(t *testing.T) {
	later := func(f registrytest.Fault) registrytest.Fault { // the first range is answered as it should be
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
			return registrytest.ContentRange(d, func(_, last, size int) string { return fmt.Sprintf("bytes 0-%d/%d", last, size) })
		}, nil},
		{"wrong total", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d, func(s, last, size int) string { return fmt.Sprintf("bytes %d-%d/%d", s, last, size+1) })
		}, nil},
		{"total unknown", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d, func(s, last, _ int) string { return fmt.Sprintf("bytes %d-%d/*", s, last) })
		}, nil},
		{"end behind what was asked for", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(d, func(s, last, size int) string { return fmt.Sprintf("bytes %d-%d/%d", s, last+1, size) })
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
		}, errdefs.ErrDataLoss},
		{"ranges of changed content", func(d []byte) registrytest.Fault {
			return registrytest.ContentRange(evil(d), func(s, last, size int) string { return fmt.Sprintf("bytes %d-%d/%d", s, last, size) })
		}, nil},
		{"changed content", func(d []byte) registrytest.Fault { return registrytest.NoRanges(evil(d)) }, errdefs.ErrDataLoss},
		{"short ranges", func(d []byte) registrytest.Fault {
			return func(w http.ResponseWriter, r *http.Request) bool { // a proxy with blocks of its own
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

// TestD07WrongBlob: bytes that are not the blob. What was wrong is asked for once more, from zero, and no third time.
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
		{"flipped bit", func(d []byte) registrytest.Fault { return registrytest.NoRanges(flipped(d)) }, errdefs.ErrDataLoss, 2},
		{"flipped bit, once", func(d []byte) registrytest.Fault { return registrytest.Times(1, registrytest.NoRanges(flipped(d))) }, nil, 2},
		{"a byte more", func(d []byte) registrytest.Fault { return registrytest.NoRanges(append(bytes.Clone(d), 0)) }, errdefs.ErrDataLoss, 2},
		{"a byte more, no length", func(d []byte) registrytest.Fault { return chunked(append(bytes.Clone(d), 0)) }, errdefs.ErrDataLoss, 2},
		{"a byte less", func(d []byte) registrytest.Fault { return registrytest.NoRanges(d[:len(d)-1]) }, errdefs.ErrDataLoss, 2},
		{"a byte less, no length", func(d []byte) registrytest.Fault { return chunked(d[:len(d)-1]) }, nil, 3}, // the last byte comes as a range
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
		{"cut", func(d []byte) registrytest.Fault { return registrytest.Times(1, registrytest.Cut(d, 300_000)) }, nil, 2},
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

// TestD07HTTP2 breaks streams as HTTP/2 does.
func TestD07HTTP2(t *testing.T) {
	for _, tc := range []struct {
		testName string
		fault    func(data []byte) registrytest.Fault
	}{
		{"RST_STREAM", func(d []byte) registrytest.Fault { return registrytest.Times(3, registrytest.Cut(d, testChunk/2)) }},
		{"D20 GOAWAY", func([]byte) registrytest.Fault {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Connection", "close") // the server sends GOAWAY
				return false
			}
		}},
		{"D20 stall", func(d []byte) registrytest.Fault { return registrytest.Times(2, registrytest.Stall(d, testChunk/2)) }},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.NewTLS(t, nil)
			data := bigImage(reg)
			reg.Fault = registrytest.On(layerPath(data), tc.fault(data))
			r := ranged(t)
			r.opts.HostsDir = certsDir(t, reg.Host, map[string][]byte{"ca.crt": reg.CA, "hosts.toml": fmt.Appendf(nil,
				"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", reg.Host)})
			store := newStore(t)
			if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
				t.Fatal(err)
			}
			holds(t, store, data)
		})
	}
}

// TestFN1Cuts: a connection that breaks at any place costs no byte twice.
func TestFN1Cuts(t *testing.T) {
	for _, percent := range []int{1, 10, 37, 50, 90, 99} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprint(percent, " ", whole), func(t *testing.T) {
				reg, data, r := large(t)
				at := bigSize * percent / 100
				n := at % testChunk
				if whole {
					r.opts.Ranges, n = 1, at
				}
				var sent atomic.Int64
				var once atomic.Bool
				reg.Fault = meter(layerPath(data), &sent, func(w http.ResponseWriter, req *http.Request) bool {
					if start := fmt.Sprintf("bytes=%d-", at-n); (req.Header.Get("Range") == "" || strings.HasPrefix(req.Header.Get("Range"), start)) && !once.Swap(true) {
						return registrytest.Cut(data, n)(w, req)
					}
					return registrytest.Cut(data, bigSize)(w, req)
				})
				store := newStore(t)
				if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
					t.Fatal(err)
				}
				holds(t, store, data)
				if sent.Load() != bigSize || !once.Load() {
					t.Errorf("%d bytes were sent of %d, cut: %v", sent.Load(), bigSize, once.Load())
				}
			})
		}
	}
}

// TestFN1Dies: the registry ends for good in the middle, and another fetch goes on where the ingest ends.
func TestFN1Dies(t *testing.T) {
	for _, percent := range []int{1, 50, 99} {
		reg, data, r := large(t)
		var dead atomic.Bool
		var sent, budget atomic.Int64
		budget.Store(int64(bigSize * percent / 100))
		reg.Fault = registrytest.On(layerPath(data), func(w http.ResponseWriter, req *http.Request) bool {
			if dead.Load() {
				panic(http.ErrAbortHandler)
			}
			n := max(0, int(budget.Add(-testChunk))+testChunk)
			if n < testChunk {
				dead.Store(true)
			}
			return meter("", &sent, registrytest.Cut(data, min(n, testChunk)))(w, req)
		})
		store := newStore(t)
		if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); !errdefs.IsUnavailable(err) {
			t.Fatal(err)
		}
		dead.Store(false)
		budget.Store(10 * bigSize)
		if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
			t.Fatal(err)
		}
		holds(t, store, data)
		if extra := sent.Load() - bigSize; extra > 3*testChunk {
			t.Errorf("%d %%: %d bytes were sent twice", percent, extra)
		}
	}
}

// TestD20Slow: who does not go on is left, and asked again for the rest.
func TestD20Slow(t *testing.T) {
	for _, tc := range []struct {
		testName string
		fault    func(data []byte) registrytest.Fault
		ok       bool
	}{
		{"stall in the body", func(d []byte) registrytest.Fault { return registrytest.Times(3, registrytest.Stall(d, 1000)) }, true},
		{"stall before the header", func([]byte) registrytest.Fault {
			return registrytest.Times(2, func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
		}, true},
		{"a byte now and then", func(d []byte) registrytest.Fault { return registrytest.Drip(d, 30*time.Millisecond) }, false},
		{"a byte now and then, once", func(d []byte) registrytest.Fault {
			return registrytest.Times(2, registrytest.Drip(d, 30*time.Millisecond))
		}, true},
		{"header drip", func([]byte) registrytest.Fault {
			return registrytest.Times(2, func(w http.ResponseWriter, _ *http.Request) bool {
				conn, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					return false
				}
				defer conn.Close()
				for _, c := range "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 1000) {
					_, _ = rw.WriteRune(c)
					if rw.Flush() != nil {
						break
					}
					time.Sleep(20 * time.Millisecond)
				}
				return true
			})
		}, true},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			t.Parallel()
			reg, data, r := large(t)
			reg.Fault = registrytest.On(layerPath(data), tc.fault(data))
			start := time.Now()
			store := newStore(t)
			_, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil)
			if (err == nil) != tc.ok || err != nil && !errdefs.IsUnavailable(err) {
				t.Fatal(err)
			}
			if err == nil {
				holds(t, store, data)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestSlowStore: time that the store takes is not the registry's.
func TestSlowStore(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	r := client(t, func(o *Options) { o.StallTimeout = 100 * time.Millisecond })
	_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", &FetchOptions{Progress: func(Event) { time.Sleep(20 * time.Millisecond) }})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFlights: two fetches of one blob into one store download it once, and a cancelled one is taken over.
func TestFlights(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		t.Run(fmt.Sprint(cancelled), func(t *testing.T) {
			reg := registrytest.New(t)
			_, all := image(reg)
			data := all[0]
			begun, goOn := make(chan struct{}), make(chan struct{})
			reg.Fault = registrytest.On(layerPath(data), registrytest.Times(1, func(_ http.ResponseWriter, r *http.Request) bool {
				close(begun)
				select {
				case <-goOn:
				case <-r.Context().Done():
				}
				return false
			}))
			store, flights := newStore(t), NewFlights()
			fetch := func(ctx context.Context) error {
				r := client(t, func(o *Options) { o.Flights = flights })
				_, err := pull(ctx, r, store, reg.Host+"/x:1", nil)
				return err
			}
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- fetch(ctx) }()
			<-begun
			go func() { second <- fetch(t.Context()) }()
			time.Sleep(100 * time.Millisecond)
			if n := reg.Count(layerPath(data)); n != 1 {
				t.Errorf("%d downloads at once", n)
			}
			requests := 1
			if cancelled {
				cancel()
				requests = 2
			} else {
				close(goOn)
			}
			if err := <-first; (err != nil) != cancelled {
				t.Error(err)
			}
			if err := <-second; err != nil {
				t.Error(err)
			}
			cancel()
			holds(t, store, data)
			if n := reg.Count(layerPath(data)); n != requests || len(flights.turns) != 0 {
				t.Errorf("%d downloads, %d turns left", n, len(flights.turns))
			}
		})
	}
}

// TestRefresh: everything is asked for again, and what the store had stays when that fails.
func TestRefresh(t *testing.T) {
	reg := registrytest.New(t)
	manifest, data := image(reg)
	reg.Index("multi", manifest)
	store := newStore(t)
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:multi", nil); err != nil {
		t.Fatal(err)
	}
	var layers atomic.Int32
	before := len(reg.Requests())
	img, err := pull(t.Context(), quick(t), store, reg.Host+"/x:multi", &FetchOptions{Refresh: true, OnLayer: func(ocispec.Descriptor) error {
		layers.Add(1)
		return nil
	}})
	if err != nil || img.Fetched != 5 || len(reg.Requests())-before != 5 || layers.Load() != 2 {
		t.Fatalf("%+v, %v, %d layers, %q", img, err, layers.Load(), reg.Requests()[before:])
	}
	reg.Fault = registrytest.On(layerPath(data[0]), registrytest.Answer(200, []byte("other")))
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:multi", &FetchOptions{Refresh: true}); !errdefs.IsDataLoss(err) {
		t.Fatal(err)
	}
	holds(t, store, data[0])
}

// TestOnLayer: also for layers that are there, and an error ends the fetch.
func TestOnLayer(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	store := newStore(t)
	for range 2 {
		var n atomic.Int32
		_, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", &FetchOptions{OnLayer: func(d ocispec.Descriptor) error {
			if _, err := store.Info(t.Context(), d.Digest); err != nil {
				t.Error(err)
			}
			n.Add(1)
			return nil
		}})
		if err != nil || n.Load() != 2 {
			t.Fatal(n.Load(), err)
		}
	}
	want := errors.New("enough")
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", &FetchOptions{OnLayer: func(ocispec.Descriptor) error { return want }}); !errors.Is(err, want) {
		t.Fatal(err)
	}
}

// TestOneByOne is what a runtime's author does: a manifest, then its blobs.
func TestOneByOne(t *testing.T) {
	reg := registrytest.New(t)
	desc, data := image(reg)
	index := reg.Index("multi", desc)
	r := quick(t)
	ref, err := NewReference(reg.Host, "x", "multi")
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Manifest(t.Context(), ref)
	if err != nil || m.Index == nil || m.Manifest != nil || m.Descriptor().Digest != index.Digest || m.Index.Manifests[0].Digest != desc.Digest {
		t.Fatal(m, err)
	}
	if ref, err = NewReference(reg.Host, "x", desc.Digest.String()); err != nil {
		t.Fatal(err)
	}
	if m, err = r.Manifest(t.Context(), ref); err != nil || m.Manifest == nil || m.MediaType != ocispec.MediaTypeImageManifest {
		t.Fatal(m, err)
	}
	for i, l := range m.Manifest.Layers {
		body, err := r.Blob(t.Context(), ref, l)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data[i]) {
			t.Fatal(err)
		}
		body.Close()
	}
	early, err := r.Blob(t.Context(), ref, m.Manifest.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	early.Close()
	if _, err := r.Blob(t.Context(), ref, ocispec.Descriptor{Digest: digest.FromString("no"), Size: 1}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := r.Blob(t.Context(), ref, ocispec.Descriptor{Digest: "no", Size: 1}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	reg.Fault = registrytest.First(registrytest.Times(1, registrytest.Cut(data[0], 100_000)))
	body, err := r.Blob(t.Context(), ref, m.Manifest.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data[0]) {
		t.Error(err)
	}
	body.Close()
	evil := bytes.Clone(data[0])
	evil[0] ^= 1
	lying := registrytest.New(t)
	lying.Fault = registrytest.NoRanges(evil)
	if ref, err = NewReference(lying.Host, "x", ""); err != nil {
		t.Fatal(err)
	}
	if body, err = r.Blob(t.Context(), ref, m.Manifest.Layers[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(body); !errdefs.IsDataLoss(err) {
		t.Error(err)
	}
	body.Close()
}

func TestNewReference(t *testing.T) {
	d := digest.FromString("x").String()
	for _, tc := range []struct{ registry, repo, ref, want string }{
		{"localhost:5000", "a/b", "1", "localhost:5000/a/b:1"},
		{"localhost:5000", "a/b", "", "localhost:5000/a/b:latest"},
		{"ghcr.io", "a", d, "ghcr.io/a@" + d},
		{"docker.io", "alpine", "3", "docker.io/library/alpine:3"},
		{"docker.io", "library/alpine", "3", "docker.io/library/alpine:3"},
		{"index.docker.io", "me/x", "3", "docker.io/me/x:3"},
		{"", "alpine", "3", ""},
		{"alpine", "x", "3", ""}, // Docker Hub's alpine/x
		{"r.io/x", "y", "3", ""},
		{"r.io", "y:1", "3", ""},
		{"r.io", "y", "a b", ""},
	} {
		ref, err := NewReference(tc.registry, tc.repo, tc.ref)
		if ref.String() != tc.want || (err != nil) != (tc.want == "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %q, %v", tc, ref, err)
		}
	}
}
