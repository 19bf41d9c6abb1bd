package proof

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/integration"
)

// disk is a file system in a loop device on tmpfs, whose power can be cut.
type disk struct {
	fs    string
	image *os.File // what the loop device shows; it has no name any more
	loop  *os.File // /dev/loopN. The kernel frees the device when nothing has it open or mounted
	dir   string   // where it is mounted
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
	d := &disk{fs: fs, image: f, dir: dir}
	t.Cleanup(func() { _ = f.Close() })
	err = errors.Join(f.Truncate(imageSize[fs]), os.MkdirAll(dir, 0o755))
	if err == nil {
		args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}}[fs]
		var out []byte
		out, err = exec.CommandContext(t.Context(), "mkfs."+fs, append(args, f.Name())...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("mkfs.%s: %w: %s", fs, err, out)
		}
	}
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		t.Fatal(err)
	}
	if err := d.attach(); err != nil {
		t.Fatalf("attach a loop device: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.unmount(), d.loop.Close()); err != nil {
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
	config := &unix.LoopConfig{Fd: uint32(d.image.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	for range 100 {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), config); err == nil {
			d.loop = dev
			return nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return errors.New("no loop device is free")
}

func (d *disk) mount() error {
	if err := unix.Mount(d.loop.Name(), d.dir, d.fs, 0, ""); err != nil {
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

// save copies the content of the disk, which is not mounted, into a file without a name.
func (d *disk) save(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "tank-proof-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := errors.Join(os.Remove(f.Name()), d.dropCache(), copySparse(d.image, f)); err != nil {
		t.Fatal(err)
	}
	return f
}

// restore puts a saved content back. The disk is not mounted.
func (d *disk) restore(saved *os.File) error {
	return errors.Join(d.dropCache(), copySparse(saved, d.image), d.dropCache())
}

// dropCache writes what the kernel keeps of the device to the image, and forgets it. The disk is not mounted.
func (d *disk) dropCache() error {
	return unix.IoctlSetInt(int(d.loop.Fd()), unix.BLKFLSBUF, 0)
}

// copySparse makes the file to equal to from, and writes only what is data.
func copySparse(from, to *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	err = errors.Join(to.Truncate(0), to.Truncate(st.Size()))
	for at := int64(0); err == nil; {
		data, seekErr := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(seekErr, unix.ENXIO) {
			break
		}
		hole, holeErr := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err = errors.Join(seekErr, holeErr); err != nil {
			break
		}
		_, err = io.Copy(io.NewOffsetWriter(to, data), io.NewSectionReader(from, data, hole-data))
		at = hole
	}
	return err
}
