package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

var ctx = context.Background()

// again closes the root and opens it again, like the next process.
func (w *world) again(t *testing.T) *world {
	t.Helper()
	must(t, w.close())
	return openAt(t, w.root, w.blobs)
}

// layerDir returns the directory of the layer with this key.
func (w *world) layerDir(t *testing.T, key string) string {
	t.Helper()
	var dir string
	must(t, w.db.View(func(tx *metadata.Tx) error {
		l, err := tx.Layer(key)
		dir = filepath.Join(w.root, "layers", l.Dir)
		return err
	}))
	return dir
}

// TestProvisional shows that a provisional layer is compared with its seal before another process
// serves it.
func TestProvisional(t *testing.T) {
	requireMounts(t)
	base := []Item{D("d").Mode(0o700), F("d/a", "1"), F("f", "content")}
	over := []Item{F("d/b", "2"), H("g", "f")}
	want := []string{"d dir 0700", `d/a file "1"`, `d/b file "2"`, `f file "content"`, `g file "content" = f`}
	for _, row := range []struct {
		testName string
		sync     bool
		damage   func(dir string) error // of the base layer, or of the fix-up
		fixup    bool
		want     error
	}{
		{"an empty file", false, func(dir string) error { return os.Truncate(dir+"/fs/f", 0) }, false, nil},
		{"a file that is gone", false, func(dir string) error { return os.Remove(dir + "/fs/d/a") }, false, nil},
		{"another mode", false, func(dir string) error { return os.Chmod(dir+"/fs/d", 0o755) }, false, nil},
		{"one more file", false, func(dir string) error { return os.WriteFile(dir+"/fs/x", nil, 0o600) }, false, nil},
		{"a seal that is gone", false, func(dir string) error { return os.Remove(dir + "/seal") }, false, nil},
		{"a seal that was cut", false, func(dir string) error { return os.Truncate(dir+"/seal", 20) }, false, nil},
		{"a directory that is gone", false, os.RemoveAll, false, nil},
		{"a fix-up", false, func(dir string) error { return os.Truncate(dir+"/fs/g", 0) }, true, nil},
		{"intact", false, func(string) error { return nil }, false, nil},
	} {
		t.Run(row.testName, func(t *testing.T) {
			w := open(t)
			layers := []layer.Pair{w.blobs.add(t, Tar(t, base...)), w.blobs.add(t, Tar(t, over...))}
			top, err := extract(ctx, w.For(holder), w, layers, true, "ns")
			must(t, err)
			_, err = w.For(holder).View(ctx, "first", top)
			must(t, err)
			key := metadata.LayerKey(layers[0].DiffID)
			if row.fixup {
				key = w.fixupOf(t, top)
			}
			must(t, row.damage(w.layerDir(t, key)))
			w = w.again(t)
			mounts, err := w.For(holder).Mounts(ctx, "first")
			must(t, err)
			if got := show(t, mounts); !slices.Equal(got, want) {
				t.Errorf("got:\n%s", strings.Join(got, "\n"))
			}
			must(t, w.Layers().Sync(ctx))
		})
	}
}

func (w *world) fixupOf(t *testing.T, key string) (fixup string) {
	t.Helper()
	must(t, w.db.View(func(tx *metadata.Tx) error {
		sn, err := tx.Snapshot(key)
		fixup = sn.Fixup
		return err
	}))
	return fixup
}

// show mounts the mounts and lists the tree.
func show(t *testing.T, mounts []mount.Mount) []string {
	t.Helper()
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	return List(t, dir)
}

// TestDurable shows that Sync makes a layer durable.
func TestDurable(t *testing.T) {
	requireRoot(t)
	w := open(t)
	l := w.blobs.add(t, Tar(t, F("f", "1")))
	rec, err := w.Layers().Unpack(ctx, holder, l)
	must(t, err)
	must(t, w.Layers().Sync(ctx))
	must(t, w.db.View(func(tx *metadata.Tx) error {
		rec, err = tx.Layer(rec.Key)
		return err
	}))
	if !rec.Durable {
		t.Error("the layer is provisional after a sync")
	}
}

func appendByte(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("2")
	return errors.Join(err, f.Close())
}

// TestCheckFinds shows that Check finds every kind of damage and names the path.
func TestCheckFinds(t *testing.T) {
	requireRoot(t)
	for _, row := range []struct {
		testName string
		damage   func(w *world, layer, rootfs string) error
		want     string
	}{
		{"a byte of a layer",
			func(_ *world, layer, _ string) error { return os.WriteFile(layer+"/fs/f", []byte("2"), 0o644) },
			"/fs/f: "},
		{"a byte of a rootfs",
			func(_ *world, _, rootfs string) error { return os.WriteFile(rootfs+"/f", []byte("2"), 0o644) }, "/f: "},
		{"a byte that was appended to a layer", func(_ *world, layer, _ string) error {
			return appendByte(layer + "/fs/d/x")
		}, "/fs/d/x: 2 bytes instead of 1, time "},
		{"a byte that was appended to a rootfs, at the same time", func(_ *world, _, rootfs string) error {
			at := time.Unix(Time, 0)
			return errors.Join(appendByte(rootfs+"/d/x"), os.Chtimes(rootfs+"/d/x", at, at))
		}, "/d/x: 2 bytes instead of 1: "},
		{"other bytes at the same time", func(_ *world, layer, _ string) error {
			at := time.Unix(Time, 0)
			return errors.Join(os.WriteFile(layer+"/fs/d/x", []byte("2"), 0o644), os.Chtimes(layer+"/fs/d/x", at, at))
		}, "/fs/d/x: other content: "},
		{"a mode", func(_ *world, layer, _ string) error { return os.Chmod(layer+"/fs/d/x", 0o600) },
			"/fs/d/x: mode 0600 instead of 0644: "},
		{"an added file", func(_ *world, layer, _ string) error { return os.WriteFile(layer+"/fs/d/y", nil, 0o644) },
			"/fs/d/y: added"},
		{"another type", func(_ *world, layer, _ string) error {
			return errors.Join(os.Remove(layer+"/fs/s"), os.Mkdir(layer+"/fs/s", 0o755))
		}, "/fs/s: a dir instead of a symlink: "},
		{"a missing file", func(_ *world, layer, _ string) error { return os.Remove(layer + "/fs/d/x") },
			"d/x: missing"},
		{"an owner", func(_ *world, layer, _ string) error { return os.Lchown(layer+"/fs/s", 1, 1) }, "s: owner"},
		{"a link", func(_ *world, layer, _ string) error {
			return errors.Join(os.Remove(layer+"/fs/h"), os.WriteFile(layer+"/fs/h", []byte("1"), 0o644),
				os.Chtimes(layer+"/fs/h", time.Unix(Time, 0), time.Unix(Time, 0)))
		}, "links"},
		{"a seal", func(_ *world, layer, _ string) error { return os.Truncate(layer+"/seal", 3) }, "damaged"},
		{"a layer's directory", func(_ *world, layer, _ string) error { return os.RemoveAll(layer) }, "seal"},
		{"a rootfs's directory", func(_ *world, _, rootfs string) error { return os.RemoveAll(rootfs) }, "missing"},
	} {
		t.Run(row.testName, func(t *testing.T) {
			w := open(t)
			l := w.blobs.add(t, Tar(t, D("d"), F("d/x", "1"), F("f", "1"), H("h", "f"), S("s", "f")))
			rec, err := w.Layers().Unpack(ctx, holder, l)
			must(t, err)
			rootfs, err := w.Layers().Assemble(ctx, holder, l.DiffID, []metadata.Layer{rec}, nil)
			must(t, err)
			must(t, w.Check(ctx, func(err metadata.Fault) { t.Errorf("before: %v", err) }))
			must(t, row.damage(w, w.layerDir(t, rec.Key), rootfs))
			var faults []string
			must(t, w.Check(ctx, func(err metadata.Fault) {
				if !errdefs.IsDataLoss(err) {
					t.Errorf("error %v, want class ErrDataLoss", err)
				}
				faults = append(faults, err.Error())
			}))
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, row.want) }) {
				t.Errorf("faults %q, want one with %q", faults, row.want)
			}
			must(t, w.close()) // skips the checks of the cleanup
		})
	}
}

// TestKnownWithoutBlob shows how, with SkipKnownBlobs, containerd learns that a layer is already
// unpacked so that it need not download the blob. Without that option, every Prepare is answered as
// for an unknown layer.
func TestKnownWithoutBlob(t *testing.T) {
	requireRoot(t)
	type answer struct {
		exists, staged bool
	}
	for _, row := range []struct {
		testName string
		parallel bool
		blobHere bool
		fetchAll bool                                        // containerd fetches every blob
		blob     func(upper, lower layer.Pair) digest.Digest // named by the label
		diffID   func(upper, lower layer.Pair) digest.Digest
		want     answer
	}{
		{"sequential", false, false, false, blobOf, diffOf, answer{exists: true}},
		{"parallel", true, false, false, blobOf, diffOf, answer{staged: true}},
		{"the blob is here and containerd adopts it", true, true, false, blobOf, diffOf, answer{}},
		{"a blob that was never seen to have the diff ID", true, false, false, otherBlob, diffOf, answer{}},
		{"another diff ID", true, false, false, blobOf, otherBlob, answer{}},
		{"containerd 2.2, sequential", false, false, false, blobOf, noDiffID, answer{exists: true}},
		{"containerd 2.2, another layer's blob", false, false, false, lowerBlob, noDiffID, answer{}},
		{"containerd 2.2, parallel", true, false, false, blobOf, noDiffID, answer{}},
		{"sequential, all blobs are fetched", false, false, true, blobOf, diffOf, answer{}},
		{"parallel, all blobs are fetched", true, false, true, blobOf, diffOf, answer{}},
		{"containerd 2.2, all blobs are fetched", false, false, true, blobOf, noDiffID, answer{}},
		{"no digest", true, false, false, func(_, _ layer.Pair) digest.Digest { return "sha256:../../x" }, diffOf,
			answer{}},
	} {
		t.Run(row.testName, func(t *testing.T) {
			opts := skipping()
			opts.SkipKnownBlobs = !row.fetchAll
			w := openWith(t, t.TempDir(), memory{}, opts)
			sn := w.For(metadata.Containerd)
			lower, upper := w.blobs.add(t, Tar(t, F("a", "1"))), w.blobs.add(t, Tar(t, F("b", "2")))
			parent, err := extract(ctx, sn, w, []layer.Pair{lower}, false, "ns")
			must(t, err)
			_, err = w.Layers().Unpack(ctx, holder, upper)
			must(t, err)
			if !row.blobHere {
				delete(w.blobs, upper.Blob.Digest)
				delete(w.blobs, lower.Blob.Digest)
			}
			target := identity.ChainID([]digest.Digest{lower.DiffID, upper.DiffID}).String()
			labels := map[string]string{
				snapshots.LabelSnapshotRef:                target,
				"containerd.io/snapshot/cri.layer-digest": row.blob(upper, lower).String(),
			}
			under, diffID := parent, row.diffID(upper, lower)
			if row.parallel {
				under = ""
			}
			if diffID != "" {
				labels[snapshots.LabelSnapshotDiffID] = diffID.String()
				labels["containerd.io/snapshot/parent-chain-id"] = lower.DiffID.String()
			}
			mounts, err := sn.Prepare(ctx, "key", under, snapshots.WithLabels(labels))
			if row.want.exists != errdefs.IsAlreadyExists(err) || (err != nil && !row.want.exists) {
				t.Fatal(err)
			}
			if row.want.exists {
				if n := found(t, sn, target, parent); n != 1 {
					t.Fatalf("%d snapshots to adopt", n)
				}
				if _, err := sn.Prepare(ctx, "key 2", under,
					snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) || found(t, sn, target, parent) != 1 {
					t.Fatalf("second Prepare: %v", err)
				}
				return
			}
			if staged := mounts[len(mounts)-1].ReadOnly(); staged != row.want.staged {
				t.Fatalf("mounts %v", mounts)
			}
			if row.want.staged {
				must(t, sn.Commit(ctx, "name", "key", snapshots.WithParent(parent)))
				view, err := sn.View(ctx, "view", "name")
				must(t, err)
				if got := show(t, view); !slices.Equal(got, []string{`a file "1"`, `b file "2"`}) {
					t.Errorf("got %q", got)
				}
			} else if mounts[0].Type != "overlay" {
				t.Errorf("mounts %v", mounts)
			}
		})
	}
}

// skipping returns the options of a store that serves known layers without their blobs.
func skipping() *snapshot.Options {
	return &snapshot.Options{SyncDelay: -1, Unpack: rights(), SkipKnownBlobs: true}
}

// TestApplyNeedsBlob shows that an unpacked layer is attached without unpacking it again, but only
// for a caller that may read the blob, unless SkipKnownBlobs is set.
func TestApplyNeedsBlob(t *testing.T) {
	requireRoot(t)
	denied := func(context.Context, digest.Digest) error { return fmt.Errorf("blob: %w", errdefs.ErrNotFound) }
	granted := func(context.Context, digest.Digest) error { return nil }
	for _, row := range []struct {
		testName string
		blobHere bool
		skip     bool
		access   func(context.Context, digest.Digest) error
		want     bool
	}{
		{"the blob is here", true, false, nil, true},
		{"the blob was discarded", false, false, nil, false},
		{"the blob was discarded, and blobs are skipped", false, true, nil, true},
		{"containerd refuses the blob to this caller", true, false, denied, false},
		{"containerd has the blob itself", false, false, granted, true},
	} {
		t.Run(row.testName, func(t *testing.T) {
			opts := skipping()
			opts.SkipKnownBlobs, opts.Access = row.skip, row.access
			w := openWith(t, t.TempDir(), memory{}, opts)
			l := w.blobs.add(t, Tar(t, F("a", "1")))
			first, err := w.Layers().Unpack(ctx, holder, l)
			must(t, err)
			if !row.blobHere {
				delete(w.blobs, l.Blob.Digest)
			}
			sn := w.For(metadata.Containerd)
			mounts, err := sn.Prepare(ctx, "key", "")
			must(t, err)
			got, err := w.Apply(ctx, l.Blob, mounts)
			if !row.want {
				if !errdefs.IsNotFound(err) {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if err != nil || got.Digest != l.DiffID ||
				w.layerDir(t, metadata.LayerKey(l.DiffID)) != filepath.Join(w.root, "layers", first.Dir) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// TestKnownAboveKnown is a sequential extraction by containerd 2.2 in which every layer is known:
// each layer stands on the snapshot that the previous answer committed.
func TestKnownAboveKnown(t *testing.T) {
	requireRoot(t)
	w := openWith(t, t.TempDir(), memory{}, skipping())
	sn := w.For(metadata.Containerd)
	var diffIDs []digest.Digest
	parent := ""
	for i, name := range []string{"a", "b", "c"} {
		l := w.blobs.add(t, Tar(t, F(name, name)))
		_, err := w.Layers().Unpack(ctx, holder, l)
		must(t, err)
		delete(w.blobs, l.Blob.Digest)
		diffIDs = append(diffIDs, l.DiffID)
		target := identity.ChainID(diffIDs).String()
		key := fmt.Sprintf("ns/%d/extract-%d %s", i, i, target)
		_, err = sn.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:                target,
			"containerd.io/snapshot/cri.layer-digest": l.Blob.Digest.String(),
		}))
		if !errdefs.IsAlreadyExists(err) || found(t, sn, target, parent) != 1 {
			t.Fatalf("layer %d: %v", i, err)
		}
		parent = key
	}
	view, err := sn.View(ctx, "view", parent)
	must(t, err)
	if got := show(t, view); !slices.Equal(got, []string{`a file "a"`, `b file "b"`, `c file "c"`}) {
		t.Errorf("got %q", got)
	}
}

// TestKnownUnderAnotherName shows that a known layer is not served as the layer of another image.
// The labels come from annotations of a pod, which containerd passes on with the snapshot of the
// pod's sandbox.
func TestKnownUnderAnotherName(t *testing.T) {
	requireRoot(t)
	w := openWith(t, t.TempDir(), memory{}, skipping())
	sn := w.For(metadata.Containerd)
	pause, mine := w.blobs.add(t, Tar(t, F("pause", "1"))), w.blobs.add(t, Tar(t, F("bin/login", "mine")))
	parent, err := extract(ctx, sn, w, []layer.Pair{pause}, false, "ns")
	must(t, err)
	_, err = w.Layers().Unpack(ctx, holder, mine)
	must(t, err)
	delete(w.blobs, mine.Blob.Digest) // as with containerd's discard_unpacked_layers
	others := identity.ChainID([]digest.Digest{digest.FromString("1"), digest.FromString("2")})
	for i, chain := range []string{"", "sha256:0", others.String()} {
		_, err = sn.Prepare(ctx, fmt.Sprint("sandbox ", i), parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:                others.String(),
			snapshots.LabelSnapshotDiffID:             mine.DiffID.String(),
			"containerd.io/snapshot/cri.layer-digest": mine.Blob.Digest.String(),
			labelParent: chain,
		}))
		if err != nil || found(t, sn, others.String(), parent) != 0 {
			t.Errorf("%q: %v", chain, err)
		}
	}
}

func blobOf(upper, _ layer.Pair) digest.Digest    { return upper.Blob.Digest }
func lowerBlob(_, lower layer.Pair) digest.Digest { return lower.Blob.Digest }
func diffOf(upper, _ layer.Pair) digest.Digest    { return upper.DiffID }
func otherBlob(_, _ layer.Pair) digest.Digest     { return digest.FromString("another") }
func noDiffID(_, _ layer.Pair) digest.Digest      { return "" } // and no parent chain ID: both labels came with 2.3

// found returns the number of snapshots that match the filter that containerd uses after
// AlreadyExists.
func found(t *testing.T, sn *snapshot.Snapshotter, target, parent string) (n int) {
	t.Helper()
	must(t, sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			n++
		}
		return nil
	}, fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, target, parent)))
	return n
}

// TestUnpackedOnce shows that a known layer in another compression is hashed and not extracted
// again, and that a false diff ID is refused.
func TestUnpackedOnce(t *testing.T) {
	requireRoot(t)
	w := open(t)
	tar := Tar(t, F("a", "1"))
	l := w.blobs.add(t, tar)
	first, err := w.Layers().Unpack(ctx, holder, l)
	must(t, err)
	plain := layer.Pair{Blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar),
		Size: int64(len(tar))}, DiffID: l.DiffID}
	w.blobs[plain.Blob.Digest] = tar
	second, err := w.Layers().Unpack(ctx, holder, plain)
	must(t, err)
	if first.Dir != second.Dir {
		t.Errorf("unpacked to %s and to %s", first.Dir, second.Dir)
	}
	liar := w.blobs.add(t, Tar(t, F("evil", "1")))
	liar.DiffID = l.DiffID
	for range 2 {
		if _, err := w.Layers().Unpack(ctx, holder, liar); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a false diff ID: %v", err)
		}
	}
}

// TestRemoveInsideWalk removes and prepares snapshots from inside Walk, as containerd's garbage
// collector may.
func TestRemoveInsideWalk(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	const n = 250
	for i := range n {
		_, err := sn.Prepare(ctx, fmt.Sprintf("key %03d", i), "")
		must(t, err)
	}
	removed := 0
	must(t, sn.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		removed++
		if _, err := sn.Prepare(ctx, fmt.Sprintf("a new %d", removed), ""); err != nil {
			return err
		}
		return sn.Remove(ctx, i.Name)
	}))
	if removed != n {
		t.Errorf("Walk saw %d of %d snapshots", removed, n)
	}
}

// TestNothingLeft shows that removing all snapshots leaves no directory in the pools.
func TestNothingLeft(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	layers := []layer.Pair{w.blobs.add(t, Tar(t, D("d").Mode(0o700), F("f", "1"))),
		w.blobs.add(t, Tar(t, F("d/x", "2"), H("g", "f")))}
	top, err := extract(ctx, sn, w, layers, true, "ns")
	must(t, err)
	_, err = sn.View(ctx, "view", top)
	must(t, err)
	_, err = sn.Prepare(ctx, "active", top)
	must(t, err)
	bottom := "ns/" + layers[0].DiffID.String()
	if err := sn.Remove(ctx, top); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removal of a parent: %v", err)
	}
	for _, key := range []string{"view", "active", top, bottom} {
		must(t, sn.Remove(ctx, key))
	}
	must(t, sn.Cleanup(ctx))
	for _, dir := range []string{"layers", "snapshots", "rootfs"} {
		left, err := os.ReadDir(filepath.Join(w.root, dir))
		must(t, err)
		if len(left) > 0 {
			t.Errorf("%s: %v", dir, left)
		}
	}
}

// TestLongChain mounts 128 layers, each with its fix-up.
func TestLongChain(t *testing.T) {
	requireMounts(t)
	w := open(t)
	layers := []layer.Pair{w.blobs.add(t, Tar(t, D("d").Mode(0o700)))}
	want := []string{"d dir 0700"}
	for i := 1; i < 128; i++ {
		layers = append(layers, w.blobs.add(t, Tar(t, F(fmt.Sprintf("d/%03d", i), "x"))))
		want = append(want, fmt.Sprintf(`d/%03d file "x"`, i))
	}
	top, err := extract(ctx, w.For(holder), w, layers, true, "ns")
	must(t, err)
	mounts, err := w.For(holder).View(ctx, "view", top)
	must(t, err)
	if got := show(t, mounts); !slices.Equal(got, want) {
		t.Errorf("got %d lines of %d", len(got), len(want))
	}
}
