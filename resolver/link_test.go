package resolver

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// protocols start a registry that configure changes before it starts, and return it with the
// directory of its hosts.toml.
var protocols = []struct {
	name string
	make func(tb testing.TB, configure func(*httptest.Server)) (*registrytest.Registry, string)
}{
	{"HTTP1", func(tb testing.TB, configure func(*httptest.Server)) (*registrytest.Registry, string) {
		return registrytest.NewPlain(tb, configure), ""
	}},
	{"HTTP2", func(tb testing.TB, configure func(*httptest.Server)) (*registrytest.Registry, string) {
		reg := registrytest.NewTLS(tb, configure)
		return reg, registrytest.CertsDir(tb, reg.Host,
			map[string][]byte{"ca.crt": reg.CA, "hosts.toml": fmt.Appendf(nil,
				"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", reg.Host)})
	}},
}

// layerImage adds an image with layers of these sizes.
func layerImage(reg *registrytest.Registry, sizes ...int) [][]byte {
	var data [][]byte
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for i, size := range sizes {
		data = append(data, random(size+i))
		layers = append(layers, reg.Blob(ocispec.MediaTypeImageLayerGzip, data[i]))
		ids = append(ids, layers[i].Digest)
	}
	reg.Image("1", amd64, layers, ids)
	return data
}

// timed returns how long a pull takes.
func timed(tb testing.TB, r *Resolver, reg *registrytest.Registry, data [][]byte, opts *FetchOptions) time.Duration {
	tb.Helper()
	store := newStore(tb)
	start := time.Now()
	if _, err := pull(tb.Context(), r, store, reg.Host+"/x:1", opts); err != nil {
		tb.Fatal(err)
	}
	took := time.Since(start)
	for _, d := range data {
		holds(tb, store, d)
	}
	return took
}

// TestLinkPerConnection checks that, if each connection is limited, a layer takes less than half of
// the time of one connection.
func TestLinkPerConnection(t *testing.T) {
	const rate, size = 1 << 20, 7 << 20
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			link := registrytest.Link{PerConnection: rate}
			reg, dir := p.make(t, link.Limit)
			data := layerImage(reg, size)
			r := newResolver(t, func(o *Options) { o.ChunkSize, o.HostsDir = 128<<10, dir })
			took := timed(t, r, reg, data, nil)
			const alone = size * time.Second / rate
			if took > alone/2 {
				t.Errorf("%v, and one connection needs %v", took, alone)
			}
			if n := link.Opened(); n > 5 { // one is that of the stream whose rest was not read
				t.Errorf("%d connections", n)
			}
			t.Logf("%v, one connection: %v; %d connections, %d requests", took, alone, link.Opened(),
				len(reg.Requests()))
		})
	}
}

// TestLinkSecond checks that a later layer begins with ranges after they were faster.
func TestLinkSecond(t *testing.T) {
	const rate, size = 2 << 20, 5 << 20
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			link := registrytest.Link{PerConnection: rate}
			reg, dir := p.make(t, link.Limit)
			data := layerImage(reg, size)
			r := newResolver(t, func(o *Options) { o.ChunkSize, o.HostsDir = 256<<10, dir })
			r.divided = true // as after an earlier layer
			took := timed(t, r, reg, data, nil)
			const alone = size * time.Second / rate
			if took > alone*2/5 {
				t.Errorf("%v, and one connection needs %v", took, alone)
			}
			t.Logf("%v, one connection: %v", took, alone)
		})
	}
}

// TestLinkTotal checks that, if all connections share a limit, the trial of ranges costs little
// time and few requests. It compares with a stream over another link at the same time, because the
// speed of the machine varies.
func TestLinkTotal(t *testing.T) {
	const rate, size = 3 << 20, 8 << 20
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			var took [2]time.Duration
			var group sync.WaitGroup
			for i, ranges := range []int{1, 4} {
				link := registrytest.Link{Total: rate}
				reg, dir := p.make(t, link.Limit)
				data := layerImage(reg, size)
				r := newResolver(t, func(o *Options) { o.ChunkSize, o.HostsDir, o.Ranges = 128<<10, dir, ranges })
				group.Go(func() {
					took[i] = timed(t, r, reg, data, nil)
					n := reg.Count(layerPath(data[0]))
					if ranges == 1 && n != 1 || ranges > 1 && (n < 3 || n > 16) {
						t.Errorf("%d requests", n)
					}
					t.Logf("%d ranges: %v; %d connections, %d requests", ranges, took[i], link.Opened(), n)
				})
			}
			group.Wait()
			if took[1] > took[0]*5/4 {
				t.Errorf("%v, and in one stream %v", took[1], took[0])
			}
		})
	}
}

// TestLinkFast checks that a layer is one request if only the processors limit the download.
func TestLinkFast(t *testing.T) {
	for _, p := range protocols {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprint(p.name, " slow store: ", slow), func(t *testing.T) {
				t.Parallel()
				reg, dir := p.make(t, nil)
				data := layerImage(reg, 24<<20)
				opts := FetchOptions{}
				if slow { // the pull takes more than a second
					opts.Progress = func(Event) { time.Sleep(5 * time.Millisecond) }
				}
				timed(t, newResolver(t, func(o *Options) { o.ChunkSize, o.HostsDir = 256<<10, dir }), reg, data, &opts)
				if n := reg.Count("/blobs/"); n != 2 {
					t.Errorf("%d requests", n)
				}
			})
		}
	}
}

// TestLinkLayers checks that large layers that are downloaded together use several connections,
// also with HTTP/2.
func TestLinkLayers(t *testing.T) {
	const rate, size, layers = 1 << 20, 2 << 20, 4
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			link := registrytest.Link{PerConnection: rate}
			reg, dir := p.make(t, link.Limit)
			data := layerImage(reg, size, size, size, size)
			took := timed(t, newResolver(t, func(o *Options) { o.ChunkSize, o.HostsDir = 128<<10, dir }), reg, data,
				nil)
			const alone = layers * size * time.Second / rate
			if took > alone/2 {
				t.Errorf("%v, and one connection needs %v", took, alone)
			}
			t.Logf("%v, one connection: %v; %d connections, %d requests", took, alone, link.Opened(),
				len(reg.Requests()))
		})
	}
}

// TestLinkLatency checks that ranges are not used if they would wait for their answers longer than
// their bytes take.
func TestLinkLatency(t *testing.T) {
	const latency, size, chunk = 100 * time.Millisecond, 24 << 20, 256 << 10
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			link := registrytest.Link{PerConnection: 24 << 20}
			reg, dir := p.make(t, link.Limit)
			data := layerImage(reg, size)
			reg.Fault = func(http.ResponseWriter, *http.Request) bool {
				time.Sleep(latency)
				return false
			}
			took := timed(t, newResolver(t, func(o *Options) { o.ChunkSize, o.HostsDir = chunk, dir }), reg, data, nil)
			if n := reg.Count("bytes="); n != 0 {
				t.Errorf("%d ranges", n)
			}
			t.Logf("%v; in ranges, without the bytes, %v", took, size/chunk/4*latency)
		})
	}
}

// TestRangesRefused checks that a registry which answers one request at a time, and all others with
// 503 or 429, gets one request at a time.
func TestRangesRefused(t *testing.T) {
	reg, data, _ := large(t)
	var busy atomic.Bool
	var refused atomic.Int32
	reg.Fault = registrytest.On(layerPath(data), func(w http.ResponseWriter, req *http.Request) bool {
		if busy.Swap(true) {
			if refused.Add(1)%2 == 0 {
				return registrytest.Answer(503, nil)(w, req)
			}
			return registrytest.Answer(429, nil)(w, req)
		}
		time.Sleep(10 * time.Millisecond)
		busy.Store(false)
		return false
	})
	r := ranged(t, func(o *Options) { o.Attempts, o.Backoff = 5, 20*time.Millisecond })
	store := newStore(t)
	if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	holds(t, store, data)
	if n := reg.Count(layerPath(data) + " bytes="); n > 15 || refused.Load() == 0 {
		t.Errorf("%d ranges, of which %d were refused", n, refused.Load())
	}
}
