package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// StallDisk is a file system on a disk that stands still on command, and later goes on as if nothing
// had happened. The disk is a loop device on the only file of a FUSE file system that the test
// process serves; the file's bytes are in /dev/shm.
//
// Nothing but Tank may touch the file system while the disk stands still: whoever does waits in the
// kernel, and cannot be killed.
type StallDisk struct {
	Dir string // where the file system is mounted

	mu      sync.Mutex // guards stalled
	stalled chan struct{}
}

// stallDiskSize is enough for XFS.
const stallDiskSize = 400 << 20

// NewStallDisk makes a file system of a type, ext4 or xfs.
func (e *Env) NewStallDisk(t testing.TB, kind string) *StallDisk {
	t.Helper()
	requireProgram(t, "mkfs."+kind)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		skipOrFail(t, "needs FUSE: "+err.Error())
	}
	d := &StallDisk{Dir: e.Path("disk")}
	bytes, err := os.CreateTemp("/dev/shm", "tank-stall")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(bytes.Name()); err != nil {
		t.Fatal(err)
	}
	if err := bytes.Truncate(stallDiskSize); err != nil {
		t.Fatal(err)
	}
	served := e.Path("fuse")
	for _, dir := range []string{served, d.Dir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := &fs.Inode{}
	server, err := fs.Mount(served, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "tank-stall", MaxWrite: 1 << 20},
		OnAdd: func(ctx context.Context) {
			file := root.NewPersistentInode(ctx, &stallFile{disk: d, bytes: bytes}, fs.StableAttr{Mode: fuse.S_IFREG})
			root.AddChild("disk", file, false)
		},
	})
	if err != nil {
		skipOrFail(t, "needs FUSE: "+err.Error())
	}
	keepFuseFromChildren(t)
	t.Cleanup(func() {
		d.Resume()
		if out, err := output("umount", d.Dir); err != nil && !strings.Contains(out, "not mounted") {
			t.Errorf("umount: %v: %s", err, out)
		}
		// Another mount namespace may have a copy of the mount for a while, and with it the loop device.
		for end := time.Now().Add(3 * time.Second); server.Unmount() != nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				if out, err := output("umount", "-l", served); err != nil {
					t.Errorf("umount: %v: %s", err, out)
				}
				return
			}
		}
		bytes.Close()
	})
	file := filepath.Join(served, "disk")
	make := []string{"mkfs." + kind, "-q", file}
	if kind == "ext4" {
		make = []string{"mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file}
	}
	for _, argv := range [][]string{make, {"mount", "-o", "loop", file, d.Dir}} {
		if out, err := output(argv...); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	return d
}

// keepFuseFromChildren closes the descriptors of FUSE servers in processes that this one starts. go-fuse
// opens /dev/fuse without O_CLOEXEC. If a daemon inherited it, then a test that was killed would leave the
// daemon waiting for a server that is gone: the kernel ends the requests of a server only when the last
// descriptor is closed.
func keepFuseFromChildren(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || target != "/dev/fuse" {
			continue
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			syscall.CloseOnExec(fd)
		}
	}
}

// Stall makes the disk stand still.
func (d *StallDisk) Stall() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stalled == nil {
		d.stalled = make(chan struct{})
	}
}

// Resume lets the disk go on.
func (d *StallDisk) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stalled != nil {
		close(d.stalled)
		d.stalled = nil
	}
}

// wait returns when the disk does not stand still.
func (d *StallDisk) wait() {
	d.mu.Lock()
	stalled := d.stalled
	d.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
}

// stallFile is the file below the loop device.
type stallFile struct {
	fs.Inode
	disk  *StallDisk
	bytes *os.File
}

var (
	_ fs.NodeOpener    = (*stallFile)(nil)
	_ fs.NodeGetattrer = (*stallFile)(nil)
	_ fs.NodeSetattrer = (*stallFile)(nil)
	_ fs.NodeReader    = (*stallFile)(nil)
	_ fs.NodeWriter    = (*stallFile)(nil)
	_ fs.NodeFsyncer   = (*stallFile)(nil)
)

// Open has the kernel ask for every byte again, as of a disk.
func (f *stallFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *stallFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = fuse.S_IFREG|0o600, stallDiskSize
	return 0
}

func (f *stallFile) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, h, out)
}

func (f *stallFile) Read(_ context.Context, _ fs.FileHandle, to []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.wait()
	n, _ := f.bytes.ReadAt(to, at)
	return fuse.ReadResultData(to[:n]), 0
}

func (f *stallFile) Write(_ context.Context, _ fs.FileHandle, b []byte, at int64) (uint32, syscall.Errno) {
	f.disk.wait()
	n, err := f.bytes.WriteAt(b, at)
	return uint32(n), fs.ToErrno(err)
}

func (f *stallFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.disk.wait()
	return 0
}

// output runs a program and returns its output.
func output(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}
