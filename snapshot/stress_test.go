package snapshot_test

import (
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

func fds(t *testing.T) int {
	n, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(n)
}

// Everything at once: claims, assemblies, sweeps, releases, containerd's extractions in two namespaces, removals.
func TestStress(t *testing.T) {
	requireRoot(t)
	w := open(t)
	var layers []snapshot.Layer
	layers = append(layers, w.blobs.add(t, Tar(t, D("d").Mode(0o700), F("d/a", "1"), F("f", "1"))))
	for i := range 5 {
		layers = append(layers, w.blobs.add(t, Tar(t, F(fmt.Sprintf("d/x%d", i), "2"), H(fmt.Sprintf("h%d", i), "f"), W("d/.wh.a"))))
	}
	f0, g0 := fds(t), runtime.NumGoroutine()
	end := time.Now().Add(8 * time.Second)
	var wg sync.WaitGroup
	bad := func(what string, err error) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := range 4 {
		wg.Add(1)
		go func() { // alone
			defer wg.Done()
			r := rand.New(rand.NewSource(int64(n)))
			for i := 0; time.Now().Before(end); i++ {
				h := metadata.Holder(fmt.Sprintf("other%d", n))
				var recs []metadata.Layer
				for _, l := range layers[:1+r.Intn(len(layers))] {
					rec, err := w.Unpack(ctx, h, l)
					bad("unpack", err)
					recs = append(recs, rec)
				}
				_, err := w.Assemble(ctx, h, digest.FromString(fmt.Sprint(len(recs), "/", n%2)), recs, &snapshot.AssembleOptions{Consume: r.Intn(2) == 0, NoSync: true})
				bad("assemble", err)
				bad("release", w.db.Update(func(tx *metadata.Tx) error { return tx.ReleaseAll(h) }))
			}
		}()
	}
	for n := range 2 {
		wg.Add(1)
		go func() { // containerd
			defer wg.Done()
			sn := w.For(metadata.Containerd)
			for i := 0; time.Now().Before(end); i++ {
				ns := fmt.Sprintf("ns%d-%d", n, i)
				top, err := extract(ctx, sn, w, layers, i%2 == 0, ns)
				bad("extract", err)
				if err != nil {
					return
				}
				_, err = sn.View(ctx, ns+"view", top)
				bad("view", err)
				_, err = sn.Prepare(ctx, ns+"active", top)
				bad("prepare", err)
				bad("remove", sn.Remove(ctx, ns+"view"))
				bad("remove", sn.Remove(ctx, ns+"active"))
				for key := top; key != ""; {
					i, err := sn.Stat(ctx, key)
					bad("stat", err)
					bad("remove", sn.Remove(ctx, key))
					key = i.Parent
				}
			}
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for time.Now().Before(end) {
			_, err := w.Sweep(ctx)
			bad("sweep", err)
			bad("sync", w.Sync(ctx))
			time.Sleep(20 * time.Millisecond)
		}
	}()
	wg.Wait()
	_, err := w.Sweep(ctx)
	must(t, err)
	time.Sleep(300 * time.Millisecond)
	for _, dir := range []string{"layers", "snapshots", "staging", "rootfs/sha256"} {
		if left, err := os.ReadDir(w.root + "/" + dir); err == nil && len(left) > 0 {
			t.Errorf("%s: %d left, %v", dir, len(left), left[0])
		}
	}
	if f, g := fds(t), runtime.NumGoroutine(); f > f0+2 || g > g0+2 {
		t.Errorf("fds %d -> %d, goroutines %d -> %d", f0, f, g0, g)
	}
	_ = errdefs.ErrNotFound
}
