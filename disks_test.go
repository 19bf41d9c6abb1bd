package tank_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a tmpfs at dir until the test ends.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { unmount(t, dir) })
}

// mountXFS mounts a new XFS at dir until the test ends.
func mountXFS(t *testing.T, dir string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "xfs")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 310<<20)) // mkfs.xfs refuses less
	run(t, "mkfs.xfs", "-q", image)
	must(t, os.MkdirAll(dir, 0o700))
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unmount(t, dir) })
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
		must(t, unix.Unmount(dir, unix.MNT_DETACH))
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// setProject gives a directory a project ID that new files in it inherit, as xfs_quota and chattr
// +P do.
func setProject(t *testing.T, dir string, id uint32) {
	t.Helper()
	// FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_XFLAG_PROJINHERIT
	const get, set, inherit = 0x801c581f, 0x401c5820, 0x200
	var attr struct {
		flags, extent, extents, project, cow uint32
		_                                    [8]byte
	}
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	for _, request := range []uintptr{get, set} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&attr))); errno != 0 {
			t.Fatalf("project of %s: %v", dir, errno)
		}
		attr.project, attr.flags = id, attr.flags|inherit
	}
	runtime.KeepAlive(f)
}

// setFlags sets and clears flags of a file, as chattr does.
func setFlags(t *testing.T, path string, set, clear int) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^clear|set))
}
