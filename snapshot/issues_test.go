package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// A kill between the rename in settle and bbolt's commit leaves layers/<id> without a record, and
// NextID gives <id> out again: os.Rename onto the directory that is not empty fails. It is not moved
// away, so each later unpack fails too.
func TestLayerIDAfterCrash(t *testing.T) {
	w := open(t)
	must(t, os.MkdirAll(filepath.Join(w.root, "layers", "1", "fs"), 0o755))
	must(t, os.WriteFile(filepath.Join(w.root, "layers", "1", "seal"), nil, 0o600))
	l := w.blobs.add(t, Tar(t, F("a", "1")))
	for i := range 3 {
		if _, err := w.Layers().Unpack(ctx, holder, l); err != nil {
			t.Errorf("unpack %d after the crash: %v", i, err)
		}
	}
}

// The same in put: the first Prepare after such a kill fails.
func TestSnapshotIDAfterCrash(t *testing.T) {
	w := open(t)
	must(t, os.MkdirAll(filepath.Join(w.root, "snapshots", "1", "fs"), 0o755))
	if _, err := w.For(metadata.Containerd).Prepare(ctx, "key", ""); err != nil {
		t.Errorf("first prepare after the crash: %v", err)
	}
}

// What a client writes into the mounts after Apply is thrown away by Commit, and the mounts do not show the layer.
func TestWriteAfterApply(t *testing.T) {
	requireMounts(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	l := w.blobs.add(t, Tar(t, F("a", "1")))
	mounts, err := sn.Prepare(ctx, "key", "")
	must(t, err)
	_, err = w.Apply(ctx, l.Blob, mounts)
	must(t, err)
	mounts, err = sn.Mounts(ctx, "key")
	must(t, err)
	if got := show(t, mounts); !slices.Equal(got, []string{`a file "1"`}) {
		t.Errorf("active snapshot after apply: %q", got)
	}
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	must(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("2"), 0o644))
	must(t, os.Chtimes(filepath.Join(dir, "mine"), time.Unix(Time, 0), time.Unix(Time, 0)))
	must(t, mount.UnmountAll(dir, 0))
	must(t, sn.Commit(ctx, "name", "key"))
	view, err := sn.View(ctx, "view", "name")
	must(t, err)
	// whose time the write changed
	got := slices.DeleteFunc(show(t, view), func(l string) bool { return strings.HasPrefix(l, ". ") })
	if !slices.Equal(got, []string{`a file "1"`, `mine file "2"`}) {
		t.Errorf("committed: %q", got)
	}
}

// Media types that are not Tank's (encrypted, erofs) must be ErrNotImplemented, or no other differ or
// stream processor is asked.
func TestForeignMediaType(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	mounts, err := sn.Prepare(ctx, "key", "")
	must(t, err)
	data := []byte("this is not a tar stream, it is encrypted")
	d := digest.FromBytes(data)
	w.blobs[d] = data
	for _, mt := range []string{ocispec.MediaTypeImageLayerGzip + "+encrypted", "application/vnd.erofs.layer.v1",
		"application/vnd.oci.image.layer.v1.tar+bzip2"} {
		_, err = w.Apply(ctx, ocispec.Descriptor{MediaType: mt, Digest: d, Size: int64(len(data))}, mounts)
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", mt, err)
		}
	}
}

// A layer that went and came again between syncfs and the record of it is called durable although it was never synced.
func TestDurableOfAnotherDirectory(t *testing.T) {
	requireRoot(t)
	w := open(t)
	l := w.blobs.add(t, Tar(t, F("a", "1")))
	rec, err := w.Layers().Unpack(ctx, holder, l)
	must(t, err)
	done := make(chan error, 1)
	must(t, w.db.Update(func(tx *metadata.Tx) error {
		go func() { done <- w.Layers().Sync(ctx) }()
		time.Sleep(1500 * time.Millisecond) // syncfs is over, its transaction waits for this one
		must(t, tx.Release(holder, metadata.LayerNode(rec.Key)))
		again := rec
		again.Dir = "99" // what settle writes for a layer that was just unpacked again
		must(t, tx.PutLayer(again))
		return tx.Hold(holder, metadata.LayerNode(rec.Key))
	}))
	must(t, os.Rename(filepath.Join(w.root, "layers", rec.Dir), filepath.Join(w.root, "layers", "99")))
	must(t, <-done)
	must(t, w.db.View(func(tx *metadata.Tx) error {
		now, err := tx.Layer(rec.Key)
		if now.Durable {
			t.Errorf("layers/%s is recorded as durable; what was synced is layers/%s", now.Dir, rec.Dir)
		}
		return err
	}))
}

type stalled struct {
	memory
	hang map[digest.Digest]bool
}

func (s stalled) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	if !s.hang[d] {
		return s.memory.Open(ctx, d)
	}
	return &hangs{ctx}, nil
}

type hangs struct{ ctx context.Context }

func (h *hangs) Read([]byte) (int, error) { <-h.ctx.Done(); return 0, h.ctx.Err() }
func (h *hangs) Close() error             { return nil }

// Sixteen layers of one pull whose registry hangs take all slots: no other image on the node is unpacked any more,
// although its blobs are all here.
func TestStalledPullBlocksOthers(t *testing.T) {
	requireRoot(t)
	root := t.TempDir()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	b := stalled{memory{}, map[digest.Digest]bool{}}
	s, err := snapshot.Open(root, db, b, &snapshot.Options{SyncDelay: -1})
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(s.Close(), db.Close())) })
	var slow []layer.Pair
	for i := range 16 {
		d := digest.FromString(fmt.Sprint(i))
		b.hang[d] = true
		slow = append(slow,
			layer.Pair{Blob: ocispec.Descriptor{Digest: d, MediaType: ocispec.MediaTypeImageLayerGzip},
				DiffID: digest.FromString(fmt.Sprint("diff", i))})
	}
	good := b.add(t, Tar(t, F("a", "1")))
	s.Layers().Announce(slow)
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := s.Layers().Unpack(ctx, holder, good); err != nil {
		t.Errorf("a layer whose blob is here: %v", err)
	}
}

// A snapshot whose key is also the name of another lock waits for itself.
func TestKeyIsALock(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	layers := []layer.Pair{w.blobs.add(t, Tar(t, D("d").Mode(0o700))), w.blobs.add(t, Tar(t, F("d/x", "1")))}
	bottom, err := extract(ctx, sn, w, layers[:1], false, "ns")
	must(t, err)
	m, err := sn.Prepare(ctx, "k", bottom)
	must(t, err)
	_, err = w.Apply(ctx, layers[1].Blob, m)
	must(t, err)
	w.Layers().Doubt(layers[0].DiffID, []digest.Digest{layers[1].DiffID})
	done := make(chan error, 1)
	go func() {
		if err := sn.Commit(ctx, "trust/"+layers[1].DiffID.String(), "k"); err != nil {
			done <- err
			return
		}
		_, err := sn.View(ctx, "v", "trust/"+layers[1].DiffID.String())
		done <- err
	}()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(3 * time.Second):
		t.Fatal("deadlock")
	}
}

var _ = snapshots.KindActive

// A transaction that fails after the rename gives its ID back. The next Prepare then fails on the
// directory that is in the way, or, when the first one cleans up late, loses its own.
func TestIDOfAFailedTransaction(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	var wg sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	var failed, lost atomic.Int64
	for n := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; time.Now().Before(end); i++ {
				if n < 4 {
					_, _ = sn.Prepare(ctx, fmt.Sprintf("bad\x00%d %d", n, i), "")
					continue
				}
				key := fmt.Sprintf("good %d %d", n, i)
				m, err := sn.Prepare(ctx, key, "")
				if err != nil {
					failed.Add(1)
					continue
				}
				time.Sleep(2 * time.Millisecond)
				if _, err := os.Stat(m[0].Source); err != nil {
					lost.Add(1)
				}
				_ = sn.Remove(ctx, key)
			}
		}()
	}
	wg.Wait()
	if failed.Load() > 0 || lost.Load() > 0 {
		t.Errorf("prepares that failed: %d; live snapshots that lost their directory: %d", failed.Load(), lost.Load())
	}
}
