package nodes

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
)

// File is an open file or directory. One of an ordinary user's, which its mode keeps from its owner, has the rights
// that were asked for until Close.
type File struct {
	*os.File
	mode  uint32 // without those rights
	given bool   // whether there were any to give
}

// OpenDirWith opens a directory inside dir, never through a symbolic link; rights are those its owner needs.
func OpenDirWith(dir *os.File, name string, rights uint32) (*File, error) {
	return openOwn(dir, name, rights, func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// OpenFile opens a file inside dir to read it; a symbolic link is not followed. live is for a directory that a
// container may be writing to: there, what is not a regular file is refused and not even opened, since opening a device
// acts on it.
func OpenFile(dir *os.File, name string, live bool) (*File, error) {
	return openOwn(dir, name, 0o400, func() (int, error) {
		if live {
			return openLive(int(dir.Fd()), name)
		}
		return unix.Openat(int(dir.Fd()), name, regular.Flags, 0)
	})
}

// ErrReplaced is returned for a file of a committed snapshot to which a container is still writing.
var ErrReplaced = fmt.Errorf("no longer a regular file: %w", errdefs.ErrAborted)

// openLive opens a name if it is a regular file: first in a way that only names the inode, then that inode to be read.
// It does not wait for a lease that a container holds on the file.
func openLive(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, ErrReplaced
	}
	again, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.ENOENT) {
		return again, err
	}
	// No /proc: whether it is still the same is known when it is open.
	f, err := regular.OpenAt(dir, name)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// OpenFileBelow opens a regular file below root, for which openOwnFile holds. No component of its path may be a
// symbolic link.
func OpenFileBelow(root *os.File, at string) (*File, error) {
	dir, err := openOwnBelow(root, path.Dir(at))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return OpenFile(dir.File, path.Base(at), true)
}

// openOwnBelow opens a directory below root, component by component where modes keep directories from their owner.
func openOwnBelow(root *os.File, at string) (*File, error) {
	d, err := beneath.OpenDirBelow(root, at)
	if !errors.Is(err, unix.EACCES) {
		return &File{File: d}, err
	}
	if d, err = OpenDir(root, "."); err != nil {
		return nil, err
	}
	above := &File{File: d}
	for c := range strings.SplitSeq(at, "/") {
		o, err := OpenDirWith(above.File, c, 0o500)
		above.Close()
		if err != nil {
			return nil, err
		}
		above = o
	}
	return above, nil
}

// openOwn gives the owner of name the rights that it needs, and opens it.
func openOwn(dir *os.File, name string, rights uint32, open func() (int, error)) (*File, error) {
	o := &File{}
	if os.Geteuid() != 0 {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, PathError("stat", name, err)
		}
		o.mode = st.Mode & 0o7777
		usable := st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&unix.S_IFMT == unix.S_IFREG
		if o.given = usable && o.mode&rights != rights && int(st.Uid) == os.Geteuid(); o.given {
			if err := beneath.Chmod(dir, name, o.mode|rights); err != nil {
				return nil, PathError("chmod", name, err)
			}
		}
	}
	fd, err := open()
	if err != nil {
		if o.given {
			_ = beneath.Chmod(dir, name, o.mode)
		}
		return nil, PathError("open", name, err)
	}
	o.File = os.NewFile(uintptr(fd), name)
	return o, nil
}

// Close closes the file and takes back the rights that it was given.
func (o *File) Close() error {
	o.Restore()
	return o.File.Close()
}

// Restore takes back the rights that the file was given when it was opened.
func (o *File) Restore() {
	if o.given {
		o.given = false
		_ = unix.Fchmod(int(o.Fd()), o.mode)
	}
}

// Entry reads what the file is, without the rights that it was given.
func (o *File) Entry(at string) (*entry.Entry, error) {
	e, err := beneath.ReadEntry(o.File, "")
	if err != nil {
		return nil, PathError("read", at, err)
	}
	e.Path = at
	if o.given {
		e.Mode = o.mode
	}
	return e, nil
}

// OpenRoot opens the root of a tree to read it.
func OpenRoot(path string) (*File, error) { return OpenPath(path, 0o500) }

// OpenPath opens a directory; rights are those its owner needs.
func OpenPath(path string, rights uint32) (*File, error) {
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, errclass.Ensure(err)
	}
	defer parent.Close()
	dir, err := OpenDirWith(parent, filepath.Base(path), rights)
	return dir, errclass.Ensure(err)
}

// OpenTree opens the root of a tree, and leaves its mode as it is.
func OpenTree(path string) (*os.File, error) {
	o, err := OpenRoot(path)
	if err != nil {
		return nil, err
	}
	o.Restore()
	return o.File, nil
}

// Link links the path from below root to name in dir.
func Link(root *os.File, from string, dir *os.File, name string) error {
	d, err := openOwnBelow(root, path.Dir(from))
	if err != nil {
		return err
	}
	defer d.Close()
	return PathError("link", from, unix.Linkat(int(d.Fd()), path.Base(from), int(dir.Fd()), name, 0))
}
