package tank_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/metadata"
)

// TestReleaseOfOne shows that the holder of one containerd can be released although another
// containerd has mounts and connections, and that HandOver moves everything of a holder. Unfinished
// downloads stay for as long as a holder can resume them.
func TestReleaseOfOne(t *testing.T) {
	requireRoot(t)
	ctx := context.Background()
	tk, err := tank.Open(filepath.Join(t.TempDir(), "root"), &tank.Options{Daemon: true})
	must(t, err)
	t.Cleanup(func() { must(t, tk.Close()) })
	first, second := metadata.Containerd, metadata.ContainerdHolder("d1")
	mounts := map[metadata.Holder][]mount.Mount{}
	for _, h := range []metadata.Holder{first, second} {
		sn := tk.Snapshots().For(h)
		_, err := sn.Prepare(ctx, "default/1/extract", "")
		must(t, err)
		must(t, sn.Commit(ctx, "default/2/layer", "default/1/extract"))
		mounts[h], err = sn.Prepare(ctx, "default/3/container", "default/2/layer")
		must(t, err)
		w, err := tk.Content().For(h).Writer(ctx, content.WithRef("default/1/layer"))
		must(t, err)
		_, err = w.Write([]byte("half"))
		must(t, err)
		must(t, w.Close())
	}
	left, err := tk.Content().For("containerd/gone").Writer(ctx, content.WithRef("ref"))
	must(t, err)
	must(t, left.Close())

	_, err = tk.GC(ctx)
	must(t, err)
	for h, want := range map[metadata.Holder]int{first: 1, second: 1, "containerd/gone": 0} {
		if sts, err := tk.Content().For(h).ListStatuses(ctx); err != nil || len(sts) != want {
			t.Errorf("%s: unfinished downloads %v, %v", h, sts, err)
		}
	}

	at := t.TempDir()
	must(t, mount.All(mounts[second], at))
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(at, "written"), nil, 0o600))
	if _, err := tk.Release(ctx, string(second), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("release while it is mounted: %v", err)
	}
	if _, err := tk.Release(ctx, string(first), nil); err != nil {
		t.Errorf("release of the other holder: %v", err)
	}

	// This process has no database, so it gets a session like the first new caller of a root.
	s, err := tk.Binder().Session(ctx, peer.Process{})
	must(t, err)
	if _, err := tk.Release(ctx, string(second), &tank.ReleaseOptions{To: "containerd/d2"}); !errdefs.IsNotFound(err) {
		t.Errorf("handover to an unknown holder: %v", err)
	}
	if _, err := tk.Release(ctx, "containerd/none",
		&tank.ReleaseOptions{To: string(s.Holder())}); !errdefs.IsNotFound(err) {
		t.Errorf("handover from an unknown holder: %v", err)
	}
	h, err := tk.Release(ctx, string(second), &tank.ReleaseOptions{To: string(s.Holder())})
	must(t, err)
	if h.Snapshots != 2 || h.Ingests != 1 {
		t.Errorf("result of the handover: %+v", h)
	}
	if i, err := tk.Snapshots().For(s.Holder()).Stat(ctx, "default/3/container"); err != nil ||
		i.Parent != "default/2/layer" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := tk.Release(ctx, string(s.Holder()), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("release while it is connected: %v", err)
	}
	must(t, unix.Unmount(at, 0))
	s.End()
	_, err = tk.Release(ctx, string(s.Holder()), nil)
	must(t, err)
	if hs, err := tk.Holders(ctx); err != nil || len(hs) > 0 {
		t.Errorf("holders: %+v, %v", hs, err)
	}
}
