package integration

import (
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var oneLayer = sync.OnceValues(func() (BuiltImage, error) {
	layer := []Entry{dir("d", 0o755)}
	for i := range 20 {
		layer = append(layer, file("d/f"+strconv.Itoa(i), 0o644, random(byte(100+i), 1<<20)))
	}
	return BuildImage([][]Entry{layer}, helloConfig)
})

// oneLayerRegistry starts a registry that has an image with one layer of 20 MiB as test/one:1.
func oneLayerRegistry(t *testing.T, e *Env) (*Registry, BuiltImage) {
	t.Helper()
	img, err := oneLayer()
	if err != nil {
		t.Fatal(err)
	}
	r := e.NewRegistry()
	r.PushBuilt(img, "test/one:1")
	return r, img
}

// TestDownloadDivided: from a registry that limits the rate of each connection, `pull` fetches one layer in several
// ranges, in less than two thirds of the time that one connection needs. If it is killed meanwhile, the next pull
// continues from the bytes on the disk.
func TestDownloadDivided(t *testing.T) {
	e := New(t)
	r, img := oneLayerRegistry(t, e)
	ref := r.Ref("test/one:1")
	layer := img.Layers[0]
	const rate = 4 << 20
	oneConnection := time.Duration(layer.Size) * time.Second / rate
	k := e.NewTank()
	r.SetRate(rate)
	r.ResetLog()
	start := time.Now()
	k.Pull(ref)
	if took := time.Since(start); took > oneConnection*2/3 {
		t.Errorf("the pull took %v; one connection needs %v", took, oneConnection)
	}
	if n := rangesOf(r); n < 2 {
		t.Errorf("%d requests for ranges, want at least 2", n)
	}

	k = e.NewTank()
	r.ResetLog()
	pull := k.StartPull(ref)
	Eventually(t, 30*time.Second, "six ranges are requested, or the pull is over",
		func() bool { return rangesOf(r) >= 6 || !pull.Running() })
	if !pull.Running() {
		t.Fatal("the pull was over before it was killed")
	}
	pull.Kill9()
	was := stateOf(t, k)
	if n := was.partial[layer.Digest]; n < 2<<20 {
		t.Errorf("%d bytes of the layer are on the disk, want at least 2 MiB", n)
	}
	r.SetRate(0)
	r.ResetLog()
	k.Pull(ref)
	was.checkResumed(t, r)
	k.MustRun("check")
}

// rangesOf counts the requests for a range of a blob that names its last byte.
func rangesOf(r *Registry) int {
	n := 0
	for _, g := range r.BlobGets() {
		if _, last, ok := strings.Cut(g.Range, "-"); ok && last != "" {
			n++
		}
	}
	return n
}

// TestDownloadOnce: from a registry that does not limit the rate, one request fetches a whole layer.
func TestDownloadOnce(t *testing.T) {
	e := New(t)
	r, img := oneLayerRegistry(t, e)
	k := e.NewTank()
	r.ResetLog()
	k.Pull(r.Ref("test/one:1"))
	n := 0
	for _, g := range r.BlobGets() {
		if g.Blob() == img.Layers[0].Digest {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d requests for the layer, want 1: %+v", n, r.BlobGets())
	}
}

// TestDownloadConnections: a daemon's next pull reuses the connections of the pull before, and a daemon that stops
// leaves none open.
func TestDownloadConnections(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	through := forward(t, strings.TrimSuffix(r.Ref("x"), "/x"))
	k := e.NewTank()
	k.Serve()
	ref := through.addr + "/test/blobs:1"
	CheckTree(t, "pull", f.tree, k.Pull(ref))
	first := through.opened.Load()
	if first == 0 || first > 10 {
		t.Errorf("%d connections for %d layers", first, len(f.Layers))
	}
	for range 3 { // each requests the manifest
		k.Pull(ref)
	}
	if n := through.opened.Load(); n != first {
		t.Errorf("%d connections after the first pull, %d after others", first, n)
	}
	k.Daemon().Stop()
	Eventually(t, 10*time.Second, "all connections end", func() bool { return through.open.Load() == 0 })
}

// forwarder forwards TCP connections and counts them: all that were opened, and those that are open.
type forwarder struct {
	addr         string
	opened, open atomic.Int64
}

func forward(t *testing.T, to string) *forwarder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{addr: l.Addr().String()}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			f.opened.Add(1)
			f.open.Add(1)
			all.Go(func() {
				defer f.open.Add(-1)
				defer in.Close()
				var d net.Dialer
				out, err := d.DialContext(t.Context(), "tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				var back sync.WaitGroup
				back.Go(func() {
					_, _ = io.Copy(in, out)
					_ = in.(*net.TCPConn).CloseWrite()
				})
				_, _ = io.Copy(out, in)
				_ = out.(*net.TCPConn).CloseWrite()
				back.Wait()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return f
}
