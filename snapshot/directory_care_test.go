package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestDirectoryTrusts checks that directory mode does not copy a provisional layer of an earlier process before it was
// compared with its seal. A damaged layer is unpacked again from its blob. Without the blob, Prepare fails.
func TestDirectoryTrusts(t *testing.T) {
	requireRoot(t)
	for _, row := range []struct {
		testName string
		damage   func(layer string) error
		blob     bool
	}{
		{"intact", func(string) error { return nil }, true},
		{"an empty file", func(dir string) error { return os.Truncate(dir+"/fs/f", 0) }, true},
		{"a missing directory", os.RemoveAll, true},
		{"an empty file and a missing blob", func(dir string) error { return os.Truncate(dir+"/fs/f", 0) }, false},
	} {
		t.Run(row.testName, func(t *testing.T) {
			w := openDirectory(t, t.TempDir(), memory{})
			layers, want := w.sample(t)
			top, err := extract(ctx, w.For(holder), w, layers, false, "ns")
			must(t, err)
			must(t, w.close())
			must(t, row.damage(w.layerDir0(t, metadata.LayerKey(layers[0].DiffID))))
			if !row.blob {
				delete(w.blobs, layers[0].Blob.Digest)
			}
			w = openDirectory(t, w.root, w.blobs)
			mounts, err := w.For(holder).Prepare(ctx, "key", top)
			if !row.blob {
				if !errdefs.IsDataLoss(err) {
					t.Errorf("mounts %v: %v", mounts, err)
				}
				must(t, w.close()) // so that the cleanup does not check the store and report the damage
				return
			}
			must(t, err)
			if got := List(t, bound(t, mounts, "rw")); !slices.Equal(got, want) {
				t.Errorf("got:\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

// layerDir0 returns the directory of a layer like layerDir, but for a root whose database is closed.
func (w *world) layerDir0(t *testing.T, key string) (dir string) {
	t.Helper()
	db, err := metadata.Open(filepath.Join(w.root, "metadata.db"), nil)
	must(t, err)
	must(t, errors.Join(db.View(func(tx *metadata.Tx) error {
		l, err := tx.Layer(key)
		dir = filepath.Join(w.root, "layers", l.Dir)
		return err
	}), db.Close()))
	return dir
}

// TestDirectoryKept follows the full copies that directory mode makes. A sweep deletes none that has a holder, Check
// reports a missing one, Recover finds all of them without the database, and after their removal nothing is left.
func TestDirectoryKept(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(holder)
	layers, want := w.sample(t)
	top, err := extract(ctx, sn, w, layers, false, "ns")
	must(t, err)
	var dirs []string
	keep := func(mounts []mount.Mount, err error) {
		must(t, err)
		dirs = append(dirs, mounts[0].Source)
	}
	keep(sn.Prepare(ctx, "active", top))
	keep(sn.View(ctx, "view", top))
	keep(sn.Prepare(ctx, "committed", top))
	must(t, sn.Commit(ctx, "name", "committed"))
	w.nothingLeft(t)
	w = w.inMode(t, true)
	sn = w.For(holder)
	w.nothingLeft(t)
	for _, dir := range dirs {
		if got := List(t, dir); !slices.Equal(got, want) {
			t.Errorf("%s after a sweep:\n%s", dir, strings.Join(got, "\n"))
		}
	}
	found, err := layer.Recover(ctx, w.root)
	must(t, err)
	snapshots, err := record.Recover(ctx, w.root)
	must(t, err)
	var recovered []string
	for _, r := range snapshots.Records {
		if r.FullCopy && r.Content {
			recovered = append(recovered, filepath.Join(w.root, "snapshots", r.Dir, "fs"))
		}
	}
	slices.Sort(recovered)
	if !slices.Equal(recovered, slices.Sorted(slices.Values(dirs))) || len(found.Layers) != len(layers) {
		t.Errorf("recovered snapshots %q and %d layers", recovered, len(found.Layers))
	}
	must(t, os.Rename(dirs[0], dirs[0]+"-away"))
	var faults []string
	must(t, w.Check(ctx, func(err metadata.Fault) { faults = append(faults, err.Error()) }))
	if len(faults) != 1 || !strings.Contains(faults[0], dirs[0]) {
		t.Errorf("faults %q", faults)
	}
	must(t, os.Rename(dirs[0]+"-away", dirs[0]))
	must(t, release(w, holder))
	must(t, sn.Cleanup(ctx))
	for _, kind := range []string{"layers", "snapshots"} {
		if left, err := os.ReadDir(filepath.Join(w.root, kind)); err != nil || len(left) > 0 {
			t.Errorf("%s: %v %v", kind, left, err)
		}
	}
}

// TestDirectoryWithoutLowers checks that a full copy does not depend on its layers: it can be used as a parent after a
// layer was lost.
func TestDirectoryWithoutLowers(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	layers, want := w.sample(t)
	sn := w.For(holder)
	top, err := extract(ctx, sn, w, layers, false, "ns")
	must(t, err)
	_, err = sn.Prepare(ctx, "key", top)
	must(t, err)
	must(t, sn.Commit(ctx, "name", "key"))
	must(t, os.RemoveAll(w.layerDir(t, metadata.LayerKey(layers[0].DiffID))))
	mounts, err := sn.Prepare(ctx, "child", "name")
	must(t, err)
	if got := List(t, bound(t, mounts, "rw")); !slices.Equal(got, want) {
		t.Errorf("got:\n%s", strings.Join(got, "\n"))
	}
	must(t, w.close()) // so that the cleanup does not check the store and report the lost layer
}
