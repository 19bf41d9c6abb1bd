package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

func idLabels(uids, gids string) snapshots.Opt {
	return snapshots.WithLabels(
		map[string]string{snapshots.LabelSnapshotUIDMapping: uids, snapshots.LabelSnapshotGIDMapping: gids})
}

// bothModes runs a test in a root of each mode.
func bothModes(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("overlay", func(t *testing.T) { test(t, open(t)) })
	t.Run("directory", func(t *testing.T) { test(t, openDirectory(t, t.TempDir(), memory{})) })
}

// TestRemappedIDs mounts snapshots for a user namespace. The mapped IDs own the content of the
// layers, the root directory and new files.
func TestRemappedIDs(t *testing.T) {
	requireMounts(t)
	bothModes(t, func(t *testing.T, w *world) {
		sn := w.For(metadata.Containerd)
		layers := []layer.Pair{w.blobs.add(t, Tar(t, F("f", "1").Owner(7, 8), D("d"))),
			w.blobs.add(t, Tar(t, F("d/x", "1")))}
		top, err := extract(ctx, sn, w, layers, true, "ns")
		must(t, err)
		owners := map[string][2]uint32{".": {100000, 200000}, "f": {100007, 200008}, "d/x": {100000, 200000}}
		for _, row := range []struct {
			testName string
			make     func(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error)
			parent   string
			paths    []string
			readOnly bool
		}{
			{"a container", sn.Prepare, top, []string{".", "f", "d/x"}, false},
			{"a container on nothing", sn.Prepare, "", []string{"."}, false},
			{"a view", sn.View, top, []string{".", "f", "d/x"}, true},
			{"a view of one layer", sn.View, "ns/" + layers[0].DiffID.String(), []string{".", "f"}, true},
			{"a view of nothing", sn.View, "", []string{"."}, true},
		} {
			t.Run(row.testName, func(t *testing.T) {
				mounts, err := row.make(ctx, row.testName, row.parent, idLabels("0:100000:65536", "0:200000:65536"))
				must(t, err)
				dir := t.TempDir()
				must(t, mount.All(mounts, dir))
				defer func() { must(t, mount.UnmountAll(dir, 0)) }()
				for _, path := range row.paths {
					if got := owner(t, filepath.Join(dir, path)); got != owners[path] {
						t.Errorf("%s: %d, want %d", path, got, owners[path])
					}
				}
				err = os.WriteFile(filepath.Join(dir, "new"), nil, 0o644)
				if readOnly := errors.Is(err, syscall.EROFS); readOnly != row.readOnly {
					t.Errorf("a new file: %v", err)
				}
				if err == nil {
					must(t, os.Chown(filepath.Join(dir, "new"), 100001, 200001))
				}
			})
		}
	})
}

func owner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
	st := fi.Sys().(*syscall.Stat_t)
	return [2]uint32{st.Uid, st.Gid}
}

// TestRemappedByContainerd shows the case that Tank does not announce the capability remap-ids.
// containerd then changes the owners in a snapshot of its own but still passes the labels. Nothing
// is remapped twice.
func TestRemappedByContainerd(t *testing.T) {
	requireMounts(t)
	bothModes(t, func(t *testing.T, w *world) {
		sn := w.For(metadata.Containerd)
		top, err := extract(ctx, sn, w, []layer.Pair{w.blobs.add(t, Tar(t, D("./"), F("f", "1").Owner(7, 8)))}, false,
			"ns")
		must(t, err)
		mounts, err := sn.Prepare(ctx, "ns/7/sha256:0-remap", top)
		must(t, err)
		inside(t, mounts, func(dir string) {
			must(t, errors.Join(os.Chown(dir, 100000, 200000), os.Chown(filepath.Join(dir, "f"), 100007, 200008)))
		})
		must(t, sn.Commit(ctx, "ns/8/sha256:0", "ns/7/sha256:0-remap"))
		for parent := "ns/8/sha256:0"; parent != "last"; {
			mounts, err = sn.Prepare(ctx, "container", parent, idLabels("0:100000:65536", "0:200000:65536"))
			must(t, err)
			inside(t, mounts, func(dir string) {
				if root, f := owner(t, dir),
					owner(t, filepath.Join(dir, "f")); root != [2]uint32{100000, 200000} ||
					f != [2]uint32{100007, 200008} {
					t.Errorf("above %s: owners %d and %d", parent, root, f)
				}
			})
			parent = map[string]string{"ns/8/sha256:0": "child", "child": "last"}[parent]
			must(t, sn.Commit(ctx, parent, "container"))
		}
	})
}

// TestRemapElsewhere shows that the labels have no effect inside a user namespace: containerd has
// changed the owners in the parent itself.
func TestRemapElsewhere(t *testing.T) {
	requireRoot(t)
	for _, directory := range []bool{false, true} {
		w := openWith(t, t.TempDir(), memory{}, &snapshot.Options{SyncDelay: -1, UserXattr: true, Directory: directory})
		for i, labels := range []snapshots.Opt{idLabels("0:100000:65536", "0:200000:65536"), idLabels("hostile", "")} {
			key := fmt.Sprint("key ", i)
			mounts, err := w.For(holder).Prepare(ctx, key, "", labels)
			must(t, err)
			bound(t, mounts, "rw")
			if got := owner(t, mounts[0].Source); got != [2]uint32{} {
				t.Errorf("owner %d", got)
			}
		}
	}
}

// TestHostileMappings shows that a label becomes part of a mount option or a path only if it is a
// valid mapping.
func TestHostileMappings(t *testing.T) {
	requireRoot(t)
	bothModes(t, func(t *testing.T, w *world) {
		sn := w.For(metadata.Containerd)
		for _, m := range []string{"x", "0:0", "0:0:0", "0:0:1:1", "0:0:4294967296", "-1:0:1", "0:0:1,lowerdir=/etc",
			"0:0:1,", ":::"} {
			if _, err := sn.Prepare(ctx, "key "+m, "", idLabels(m, "0:0:1")); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", m, err)
			}
			if _, err := sn.View(ctx, "view "+m, "", idLabels("0:0:1", m)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", m, err)
			}
		}
		// In an extraction the labels may come from the image, so they have no effect.
		mounts, err := sn.Prepare(ctx, "ns/1/extract-1 sha256:0", "", idLabels("0:5:1", "0:5:1"))
		must(t, err)
		for _, o := range mounts[0].Options {
			if o == "uidmap=0:5:1" {
				t.Errorf("mounts %v", mounts)
			}
		}
		for i, v := range []string{"../../../canary", "/canary", "a,lowerdir=/etc", "a:/etc", "\n",
			strings.Repeat("x", 5000)} {
			for _, label := range []string{snapshots.LabelSnapshotRef, labelParent, snapshots.LabelSnapshotDiffID,
				"containerd.io/snapshot/cri.layer-digest"} {
				key := fmt.Sprint(label, i)
				mounts, err := sn.Prepare(ctx, key, "", snapshots.WithLabels(map[string]string{label: v}))
				must(t, err)
				if strings.Contains(fmt.Sprint(mounts), v) ||
					!strings.Contains(fmt.Sprint(mounts), w.root+"/snapshots/") {
					t.Errorf("%s=%q: %v", label, v, mounts)
				}
			}
		}
		w.nothingLeft(t)
	})
}

const labelParent = "containerd.io/snapshot/parent-chain-id"
