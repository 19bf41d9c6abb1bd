package proof

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/integration"
)

// disk is a file system in a loop device on tmpfs, whose power can be cut.
type disk struct {
	fs    string
	image string // file that the loop device shows
	loop  string // /dev/loopN
	dir   string // where it is mounted
}

// imageSize is the least that the tools make: mkfs.xfs refuses less than 300 MiB.
var imageSize = map[string]int64{"ext4": 128 << 20, "xfs": 320 << 20}

// newDisk makes a file system and mounts it at dir.
func newDisk(t *testing.T, fs, dir string) *disk {
	t.Helper()
	integration.RequireProgram(t, "mkfs."+fs)
	f, err := os.CreateTemp("/dev/shm", "tank-proof-")
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{fs: fs, image: f.Name(), dir: dir}
	t.Cleanup(func() { _ = os.Remove(d.image) })
	err = errors.Join(f.Truncate(imageSize[fs]), f.Close(), os.MkdirAll(dir, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}}[fs]
	if out, err := exec.CommandContext(t.Context(), "mkfs."+fs, append(args, d.image)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v: %s", fs, err, out)
	}
	if err := d.attach(); err != nil {
		t.Fatalf("attach a loop device: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.unmount(), d.detach()); err != nil {
			t.Errorf("remove the disk: %v", err)
		}
	})
	if err := d.mount(); err != nil {
		t.Fatal(err)
	}
	return d
}

// attach connects the image to a free loop device. Another process may take the device first.
func (d *disk) attach() error {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	f, err := os.OpenFile(d.image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		dev, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.IoctlLoopConfigure(dev, &unix.LoopConfig{Fd: uint32(f.Fd())})
		_ = unix.Close(dev)
		if err == nil {
			d.loop = name
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return errors.New("no loop device is free")
}

func (d *disk) detach() error {
	dev, err := unix.Open(d.loop, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	return unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0)
}

func (d *disk) mount() error {
	if err := unix.Mount(d.loop, d.dir, d.fs, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", d.fs, err)
	}
	return nil
}

// unmount unmounts the disk and what is mounted below it or from it. It waits for processes that are ending.
func (d *disk) unmount() error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		if err := integration.UnmountFrom(d.dir); err != nil {
			return err
		}
		err := unix.Unmount(d.dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // not mounted
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", d.dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The ioctl EXT4_IOC_SHUTDOWN, which XFS has as XFS_IOC_GOINGDOWN, and its flag: drop everything, the journal in memory
// included.
const (
	shutdownIoctl = 0x8004587d
	noLogFlush    = 2
)

// cutPower drops what was not forced to the disk. From then on every access to the file system fails.
func (d *disk) cutPower() error {
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlSetPointerInt(fd, shutdownIoctl, noLogFlush)
}

// sync forces everything to the disk.
func (d *disk) sync() error {
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// save copies the content of the image, which is not mounted, to a file beside it.
func (d *disk) save(t *testing.T) string {
	t.Helper()
	name := d.image + ".saved"
	t.Cleanup(func() { _ = os.Remove(name) })
	if err := copySparse(d.image, name); err != nil {
		t.Fatal(err)
	}
	return name
}

// restore puts a saved content back. The disk is not mounted.
func (d *disk) restore(saved string) error { return copySparse(saved, d.image) }

// copySparse makes the file to equal to from, and writes only what is data.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Clean(to), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(out.Truncate(0), out.Truncate(st.Size()))
	for at := int64(0); err == nil; {
		data, seekErr := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(seekErr, unix.ENXIO) {
			break
		}
		hole, holeErr := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err = errors.Join(seekErr, holeErr); err != nil {
			break
		}
		_, err = io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data))
		at = hole
	}
	return errors.Join(err, out.Close())
}
