package tank_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestHoldersOnFaultyDisk shows that Holders lists all holders although the size of a directory
// cannot be measured. Release measures the same sizes.
func TestHoldersOnFaultyDisk(t *testing.T) {
	requireRoot(t)
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs FUSE, to make a directory that cannot be read: %v", err)
	}
	ctx := context.Background()
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	r := newRoot(t, false)
	ref := reg.Host + "/x:1"
	_, err = r.pull(t, ref, nil)
	must(t, err)
	dirs, err := filepath.Glob(filepath.Join(r.dir, "rootfs", "*", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no rootfs: %v", err)
	}
	broken := filepath.Join(dirs[0], "broken")
	must(t, os.Mkdir(broken, 0o755))
	must(t, unix.Mount("broken", broken, "fuse", 0,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())))
	t.Cleanup(func() { _ = unix.Unmount(broken, unix.MNT_DETACH) })
	must(t, fuse.Close()) // every call on the mount now fails with ENOTCONN
	if _, err := os.ReadDir(broken); err == nil {
		t.Fatal("the directory is still readable")
	}
	r.with(t, func(tk *tank.Tank) {
		if all, err := tk.Holders(ctx); err != nil || len(all) == 0 {
			t.Errorf("holders %v, %v", all, err)
		}
		must(t, unix.Unmount(broken, unix.MNT_DETACH))
		_, err := tk.Release(ctx, "image/"+ref, nil) // also the rootfs, with the extra directory
		must(t, err)
	})
}
