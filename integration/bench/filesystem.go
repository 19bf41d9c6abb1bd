package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// filesystem is one that was made for a run.
type filesystem struct {
	dir  string // where it is mounted
	file string // of the loop device; empty for tmpfs
}

// makeFS makes a file system of this type and size and mounts it at dir. Only the mount keeps the loop
// device, so it ends with the mount, and the mount ends with the namespace.
func makeFS(ctx context.Context, dir, kind string, size int64) (*filesystem, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if kind == "tmpfs" {
		err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size))
		return &filesystem{dir: dir}, os.NewSyscallError("mount tmpfs", err)
	}
	mkfs := map[string][]string{
		"xfs":  {"mkfs.xfs", "-f", "-q", "-K"},
		"ext4": {"mkfs.ext4", "-F", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"},
	}[kind]
	if mkfs == nil {
		return nil, fmt.Errorf("file system %q: xfs, ext4 or tmpfs", kind)
	}
	fs := &filesystem{dir: dir, file: filepath.Join(filepath.Dir(dir), "fs.img")}
	f, err := os.OpenFile(fs.file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, os.Remove(fs.file))
	}
	if out, err := exec.CommandContext(ctx, mkfs[0], append(mkfs[1:], fs.file)...).CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w\n%s", mkfs[0], err, out), os.Remove(fs.file))
	}
	if err := mountLoop(f, dir, kind); err != nil {
		return nil, errors.Join(err, os.Remove(fs.file))
	}
	return fs, nil
}

// mountLoop mounts the file system in f, which has to stay open no longer than the call.
func mountLoop(f *os.File, dir, kind string) error {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer ctl.Close()
	for range 50 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return os.NewSyscallError("loop-control", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{
			Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if errors.Is(err, unix.EBUSY) { // somebody else was quicker
			dev.Close()
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err == nil {
			err = os.NewSyscallError("mount "+name, unix.Mount(name, dir, kind, 0, ""))
		}
		return errors.Join(err, dev.Close()) // the close of an unmounted device clears it
	}
	return errors.New("no free loop device")
}

// used is how many bytes are taken, once everything is written out.
func (fs *filesystem) used() (int64, error) {
	d, err := os.Open(fs.dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return 0, os.NewSyscallError("syncfs", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(fs.dir, &st); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// drop unmounts and deletes the file system. Mounts below it, a peer's, go first.
func (fs *filesystem) drop() error {
	err := unmountBelow(fs.dir)
	if fs.file != "" {
		err = errors.Join(err, os.Remove(fs.file))
	}
	return err
}

// unmountBelow unmounts dir and what is mounted below it, the latest first. The namespace is ours: nobody else sees it.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unmount(points[i]); err != nil {
			return err
		}
	}
	return nil
}

// unmount retries while a process still uses the mount.
func unmount(point string) error {
	for range 100 {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if err != unix.EBUSY {
			return os.NewSyscallError("unmount "+point, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("unmount %s: busy", point)
}
