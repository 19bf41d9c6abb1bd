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

// TestLayerIDAfterCrash starts with a directory layers/1 that has no record, as a kill between the rename and the
// commit of the transaction leaves it. Later unpacks must succeed, although the database may give out the name 1
// again.
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

// TestSnapshotIDAfterCrash is TestLayerIDAfterCrash for snapshots: the first Prepare after such a kill must succeed.
func TestSnapshotIDAfterCrash(t *testing.T) {
	w := open(t)
	must(t, os.MkdirAll(filepath.Join(w.root, "snapshots", "1", "fs"), 0o755))
	if _, err := w.For(metadata.Containerd).Prepare(ctx, "key", ""); err != nil {
		t.Errorf("first prepare after the crash: %v", err)
	}
}

// TestWriteAfterApply checks that the mounts of an active snapshot show the layer after Apply, and that Commit keeps a
// file that a client wrote into them.
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
	// Leave out the root directory, whose time the write changed.
	got := slices.DeleteFunc(show(t, view), func(l string) bool { return strings.HasPrefix(l, ". ") })
	if !slices.Equal(got, []string{`a file "1"`, `mine file "2"`}) {
		t.Errorf("committed: %q", got)
	}
}

// TestForeignMediaType checks that Apply returns ErrNotImplemented for media types that Tank does not support
// (encrypted, EROFS, bzip2). Otherwise containerd would not try its other differs and stream processors.
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

// TestDurableOfAnotherDirectory replaces a layer's directory between syncfs and the transaction that records the layer
// as durable. The new directory was never synced, so it must not be recorded as durable.
func TestDurableOfAnotherDirectory(t *testing.T) {
	requireRoot(t)
	w := open(t)
	l := w.blobs.add(t, Tar(t, F("a", "1")))
	rec, err := w.Layers().Unpack(ctx, holder, l)
	must(t, err)
	done := make(chan error, 1)
	must(t, w.db.Update(func(tx *metadata.Tx) error {
		go func() { done <- w.Layers().Sync(ctx) }()
		time.Sleep(1500 * time.Millisecond) // syncfs has ended; the transaction after it waits for this one
		must(t, tx.Release(holder, metadata.LayerNode(rec.Key)))
		again := rec
		again.Dir = "99" // as if the layer had just been unpacked again
		must(t, tx.PutLayer(again))
		return tx.Hold(holder, metadata.LayerNode(rec.Key))
	}))
	must(t, os.Rename(filepath.Join(w.root, "layers", rec.Dir), filepath.Join(w.root, "layers", "99")))
	must(t, <-done)
	must(t, w.db.View(func(tx *metadata.Tx) error {
		now, err := tx.Layer(rec.Key)
		if now.Durable {
			t.Errorf("layers/%s is recorded as durable, but layers/%s was synced", now.Dir, rec.Dir)
		}
		return err
	}))
}

// stalled is a blob store in which some blobs never deliver a byte.
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

// hangs is a blob whose Read blocks until its context ends.
type hangs struct{ ctx context.Context }

func (h *hangs) Read([]byte) (int, error) { <-h.ctx.Done(); return 0, h.ctx.Err() }
func (h *hangs) Close() error             { return nil }

// TestStalledPullBlocksOthers announces sixteen layers whose registry hangs. They must not occupy every unpack slot: a
// layer of another image, whose blob is present, must still be unpacked.
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
		t.Errorf("unpack of a layer whose blob is present: %v", err)
	}
}

// TestKeyIsALock gives a snapshot a key that looks like the name of a lock on a layer. Commit and View must not wait
// for a lock that they hold themselves.
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
	w.Layers().Doubt(metadata.RootfsNode(layers[0].DiffID), metadata.LayerNode(metadata.LayerKey(layers[1].DiffID)))
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

// TestIDOfAFailedTransaction runs Prepares that fail beside Prepares that succeed. A failed transaction must not give
// its directory's name to another Prepare: that Prepare would find the directory in its way, or lose its own
// directory when the failed one cleans up late.
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
		t.Errorf("%d valid prepares failed; %d live snapshots lost their directory", failed.Load(), lost.Load())
	}
}
