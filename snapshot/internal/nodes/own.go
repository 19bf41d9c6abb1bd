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

// File is an open file or directory. If its mode does not let its owner open it, and the process has no rights of root,
// the mode gets the rights that are needed until Close.
type File struct {
	*os.File
	mode  uint32 // the mode without those rights
	given bool   // the mode on disk has rights that mode lacks
}

// OpenDirWith opens a directory inside dir, never through a symbolic link. rights are the mode bits
// that its owner needs.
func OpenDirWith(dir *os.File, name string, rights uint32) (*File, error) {
	return openWith(dir, name, rights, func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// OpenFile opens a file inside dir to read it, and follows no symbolic link. live means that a container may be writing
// to the directory. Then OpenFile returns ErrReplaced for everything but a regular file, and does not open it, because
// opening a device may have an effect.
func OpenFile(dir *os.File, name string, live bool) (*File, error) {
	return openWith(dir, name, 0o400, func() (int, error) {
		if live {
			return openLive(int(dir.Fd()), name)
		}
		return unix.Openat(int(dir.Fd()), name, regular.Flags, 0)
	})
}

// ErrReplaced is returned for a file that a container replaced while its committed snapshot was read. It is of class
// errdefs.ErrAborted.
var ErrReplaced = fmt.Errorf("no longer a regular file: %w", errdefs.ErrAborted)

// openLive opens a name if it is a regular file. It first gets a descriptor that only refers to the inode (O_PATH), and
// then opens that inode for reading. It does not wait for a lease that a container has on the file.
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
	// There is no /proc. regular.OpenAt looks at the type after opening.
	f, err := regular.OpenAt(dir, name)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// OpenFileBelow opens a regular file below root, as OpenFile does with live. No component of its path may be a symbolic
// link.
func OpenFileBelow(root *os.File, at string) (*File, error) {
	dir, err := openBelow(root, path.Dir(at))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return OpenFile(dir.File, path.Base(at), true)
}

// openBelow opens a directory below root. If a mode does not let the owner in, it opens the path component by
// component.
func openBelow(root *os.File, at string) (*File, error) {
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

// openWith gives the owner of name the rights that are needed, and then calls open.
func openWith(dir *os.File, name string, rights uint32, open func() (int, error)) (*File, error) {
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

// Close closes the file and restores its mode.
func (o *File) Close() error {
	o.Restore()
	return o.File.Close()
}

// Restore restores the mode of the file, which stays open.
func (o *File) Restore() {
	if o.given {
		o.given = false
		_ = unix.Fchmod(int(o.Fd()), o.mode)
	}
}

// Entry returns the entry of the file with the path at. Its mode has no rights that were only given for reading.
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

// OpenRoot opens the directory at a path to read what is in it.
func OpenRoot(path string) (*File, error) { return OpenPath(path, 0o500) }

// OpenPath opens the directory at a path. rights are the mode bits that its owner needs.
func OpenPath(path string, rights uint32) (*File, error) {
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, errclass.Ensure(err)
	}
	defer parent.Close()
	dir, err := OpenDirWith(parent, filepath.Base(path), rights)
	return dir, errclass.Ensure(err)
}

// OpenTree is like OpenRoot, and restores the mode at once.
func OpenTree(path string) (*os.File, error) {
	o, err := OpenRoot(path)
	if err != nil {
		return nil, err
	}
	o.Restore()
	return o.File, nil
}

// Link makes name in dir a hard link to the file at the path from below root.
func Link(root *os.File, from string, dir *os.File, name string) error {
	d, err := openBelow(root, path.Dir(from))
	if err != nil {
		return err
	}
	defer d.Close()
	return PathError("link", from, unix.Linkat(int(d.Fd()), path.Base(from), int(dir.Fd()), name, 0))
}
