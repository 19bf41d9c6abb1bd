package snapshot_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

func idLabels(uids, gids string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: uids, snapshots.LabelSnapshotGIDMapping: gids})
}

// TestRemappedIDs mounts a snapshot for a user namespace: lower files, the root directory and new files belong to it.
func TestRemappedIDs(t *testing.T) {
	requireMounts(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	layers := []snapshot.Layer{w.blobs.add(t, Tar(t, F("f", "1").Owner(7, 8), D("d"))), w.blobs.add(t, Tar(t, F("d/x", "1")))}
	top, err := extract(ctx, sn, w, layers, true, "ns")
	must(t, err)
	mounts, err := sn.Prepare(ctx, "key", top, idLabels("0:100000:65536", "0:200000:65536"))
	must(t, err)
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	for path, want := range map[string][2]uint32{".": {100000, 200000}, "f": {100007, 200008}, "d/x": {100000, 200000}} {
		fi, err := os.Lstat(filepath.Join(dir, path))
		must(t, err)
		if st := fi.Sys().(*syscall.Stat_t); [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s: %d:%d, want %v", path, st.Uid, st.Gid, want)
		}
	}
}

func TestHostileMappings(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	for _, m := range []string{"x", "0:0", "0:0:0", "0:0:1:1", "0:0:4294967296", "-1:0:1", "0:0:1,lowerdir=/etc", "0:0:1,", ":::"} {
		if _, err := sn.Prepare(ctx, "key "+m, "", idLabels(m, "0:0:1")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", m, err)
		}
	}
	// In an extraction the labels may come from the image, and do nothing.
	mounts, err := sn.Prepare(ctx, "ns/1/extract-1 sha256:0", "", idLabels("0:5:1", "0:5:1"))
	must(t, err)
	for _, o := range mounts[0].Options {
		if o == "uidmap=0:5:1" {
			t.Errorf("mounts %v", mounts)
		}
	}
}
