package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// lowerOf returns the lowest directory of the first mount, which is the layer of a snapshot's parent.
func lowerOf(t *testing.T, mounts []mount.Mount) string {
	t.Helper()
	for _, o := range mounts[0].Options {
		if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return lower
		}
	}
	t.Fatalf("no lowerdir in %+v", mounts)
	return ""
}

// TestMendKeepsMounted shows that a layer that is mended gets a new directory, and that the old one stays, whatever is
// swept, until the last snapshot is removed that may have mounted it.
func TestMendKeepsMounted(t *testing.T) {
	w := open(t)
	sn := w.For(holder)
	l := w.blobs.add(t, Tar(t, D("d"), F("d/x", "1")))
	parent, err := extract(ctx, sn, w, []layer.Pair{l}, false, "ns")
	must(t, err)
	first, err := sn.Prepare(ctx, "first", parent)
	must(t, err)
	second, err := sn.Prepare(ctx, "second", parent)
	must(t, err)
	old := lowerOf(t, first)
	if got := lowerOf(t, second); got != old {
		t.Fatalf("lower directories %s and %s of one layer", old, got)
	}
	must(t, os.WriteFile(old+"/d/x", []byte("2"), 0o644))
	must(t, w.Layers().Mend(ctx, metadata.LayerKey(l.DiffID), nil))

	third, err := sn.Prepare(ctx, "third", parent)
	must(t, err)
	mended := lowerOf(t, third)
	if mended == old {
		t.Fatal("the layer was mended in place")
	}
	if b, err := os.ReadFile(mended + "/d/x"); string(b) != "1" {
		t.Errorf("the mended file has %q, %v", b, err)
	}
	again, err := sn.Mounts(ctx, "first")
	must(t, err)
	if got := lowerOf(t, again); got != mended {
		t.Errorf("a later mount of an older snapshot uses %s instead of %s", got, mended)
	}
	stays := func(when string) {
		t.Helper()
		_, err := w.Sweep(ctx)
		must(t, err)
		if b, err := os.ReadFile(old + "/d/x"); string(b) != "2" {
			t.Errorf("%s: the old directory has %q, %v", when, b, err)
		}
	}
	stays("mended")
	w = w.again(t) // another process knows it as well
	sn = w.For(holder)
	stays("opened again")
	must(t, w.Check(ctx, func(f metadata.Fault) { t.Errorf("with the old directory: %v", f) }))
	must(t, w.Layers().Mend(ctx, metadata.LayerKey(l.DiffID), nil))
	if got, err := sn.Mounts(ctx, "third"); err != nil || lowerOf(t, got) != mended {
		t.Errorf("an intact layer was mended: %v, %v", got, err)
	}
	must(t, sn.Remove(ctx, "first"))
	stays("one is removed")
	must(t, sn.Remove(ctx, "second"))
	_, err = w.Sweep(ctx)
	must(t, err)
	if _, err := os.Lstat(filepath.Dir(old)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old directory is still there: %v", err)
	}
	if _, err := os.Lstat(mended); err != nil {
		t.Error(err)
	}
}

// TestMendWithoutBlob shows the error for a broken layer whose blob is not here, and that a blob is tried that an image
// claims to be the layer.
func TestMendWithoutBlob(t *testing.T) {
	w := open(t)
	l := w.blobs.add(t, Tar(t, F("x", "1")))
	rec, err := w.Layers().Unpack(ctx, holder, l)
	must(t, err)
	must(t, os.Remove(filepath.Join(w.layerDir(t, rec.Key), "fs", "x")))
	blob := w.blobs[l.Blob.Digest]
	delete(w.blobs, l.Blob.Digest)
	other := w.blobs.add(t, Tar(t, F("y", "1")))
	if err := w.Layers().Mend(ctx, rec.Key, []digest.Digest{other.Blob.Digest}); !errdefs.IsDataLoss(err) {
		t.Errorf("without the blob: %v", err)
	}
	w.blobs[l.Blob.Digest] = blob
	must(t, w.Layers().Mend(ctx, rec.Key, nil))
}
