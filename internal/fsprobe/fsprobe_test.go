package fsprobe_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/fsprobe"
)

// mount mounts a file system at a new directory until the test ends.
func mount(t *testing.T, kind, options string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("mounting needs root")
	}
	t.Skip("mounting needs root")
}

// overlayfs mounts an overlay of directories on a tmpfs.
func overlayfs(t *testing.T) string {
	t.Helper()
	base := mount(t, "tmpfs", "mode=700")
	for _, dir := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return mount(t, "overlay", "lowerdir="+base+"/l,upperdir="+base+"/u,workdir="+base+"/w")
}

// TestTry: a file system is refused for what it lacks, only if that is needed, and nothing stays
// there. Those with other lacks are in the integration tests, on FUSE.
func TestTry(t *testing.T) {
	requireRoot(t)
	for name, tc := range map[string]struct {
		dir     func(t *testing.T) string
		overlay string // a part of the reason to refuse it for overlay; "": it is fit
	}{
		"tmpfs": {func(t *testing.T) string { return mount(t, "tmpfs", "mode=700") }, ""},
		"ramfs": {func(t *testing.T) string { return mount(t, "ramfs", "mode=700") },
			"(ramfs) lacks what Tank needs: extended attributes"},
		"overlayfs": {overlayfs, "(overlay) lacks what Tank needs: whiteouts"},
		// a disk without a free inode or block: nobody can tell
		"full":        {func(t *testing.T) string { return mount(t, "tmpfs", "mode=700,nr_inodes=1") }, ""},
		"one inode":   {func(t *testing.T) string { return mount(t, "tmpfs", "mode=700,nr_inodes=2") }, ""},
		"two inodes":  {func(t *testing.T) string { return mount(t, "tmpfs", "mode=700,nr_inodes=3") }, ""},
		"almost full": {func(t *testing.T) string { return mount(t, "tmpfs", "mode=700,nr_inodes=4") }, ""},
		"no blocks":   {func(t *testing.T) string { return mount(t, "tmpfs", "mode=700,size=4k") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tc.dir(t)
			for _, needs := range []fsprobe.Needs{{}, {Sync: true}, {Overlay: true, Sync: true}} {
				err := fsprobe.Try(dir, needs)
				if want := needs.Overlay && tc.overlay != ""; (err != nil) != want ||
					want && (!strings.Contains(err.Error(), tc.overlay) || !errdefs.IsFailedPrecondition(err) ||
						!cause.Is(err, cause.FileSystem)) {
					t.Errorf("%+v: %v", needs, err)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("%+v left %v, %v", needs, left, err)
				}
			}
		})
	}
}

// TestSweep: what a killed process left is deleted, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{fsprobe.Prefix + "1/file", "layers/" + fsprobe.Prefix + "1", ".trash-1/x"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	fsprobe.Sweep(dir)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left %v, %v", left, err)
	}
}
