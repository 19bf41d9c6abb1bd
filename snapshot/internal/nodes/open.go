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

// File is an open file or directory. If its mode denies its owner access and the process is not root, the mode on disk
// has additional bits until Close.
type File struct {
	*os.File
	mode    uint32 // the original mode
	changed bool   // the mode on disk has bits that mode lacks
}

// OpenDirWith opens a directory inside dir, never through a symbolic link. rights are the mode bits that the owner
// needs while the directory is open.
func OpenDirWith(dir *os.File, name string, rights uint32) (*File, error) {
	return openWith(dir, name, rights, func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// OpenFile opens a file inside dir for reading, never through a symbolic link. live means that a container may be
// writing to the directory. Then OpenFile opens regular files only and returns ErrReplaced for anything else, because
// opening a device may have an effect.
func OpenFile(dir *os.File, name string, live bool) (*File, error) {
	return openWith(dir, name, 0o400, func() (int, error) {
		if live {
			return openLive(int(dir.Fd()), name)
		}
		return unix.Openat(int(dir.Fd()), name, regular.Flags, 0)
	})
}

// ErrReplaced is returned for a file of a committed snapshot that a running container has replaced in the meantime.
// It is of class errdefs.ErrAborted.
var ErrReplaced = fmt.Errorf("no longer a regular file: %w", errdefs.ErrAborted)

// openLive opens a name if it is a regular file. It first opens a descriptor that only refers to the inode (O_PATH),
// and then opens this inode for reading. It does not wait if a container holds a lease on the file.
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
	readable, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.ENOENT) {
		return readable, err
	}
	// /proc is not mounted. regular.OpenAt checks the type after opening.
	f, err := regular.OpenAt(dir, name)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// OpenFileBelow opens a regular file at a path below root, as OpenFile does with live. It returns an error if a
// component of the path is a symbolic link.
func OpenFileBelow(root *os.File, at string) (*File, error) {
	dir, err := openBelow(root, path.Dir(at))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return OpenFile(dir.File, path.Base(at), true)
}

// openBelow opens a directory below root. If a mode on the path denies the owner access, it opens the path component by
// component and adds mode bits where they are missing.
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
		sub, err := OpenDirWith(above.File, c, 0o500)
		above.Close()
		if err != nil {
			return nil, err
		}
		above = sub
	}
	return above, nil
}

// openWith calls open after it has added those mode bits of rights to name that the owner lacks. If open fails, it
// restores the mode.
func openWith(dir *os.File, name string, rights uint32, open func() (int, error)) (*File, error) {
	f := &File{}
	if os.Geteuid() != 0 {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, PathError("stat", name, err)
		}
		f.mode = st.Mode & 0o7777
		usable := st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&unix.S_IFMT == unix.S_IFREG
		if f.changed = usable && f.mode&rights != rights && int(st.Uid) == os.Geteuid(); f.changed {
			if err := beneath.Chmod(dir, name, f.mode|rights); err != nil {
				return nil, PathError("chmod", name, err)
			}
		}
	}
	fd, err := open()
	if err != nil {
		if f.changed {
			_ = beneath.Chmod(dir, name, f.mode)
		}
		return nil, PathError("open", name, err)
	}
	f.File = os.NewFile(uintptr(fd), name)
	return f, nil
}

// Close restores the mode of the file and closes it.
func (f *File) Close() error {
	f.Restore()
	return f.File.Close()
}

// Restore restores the mode of the file and leaves it open.
func (f *File) Restore() {
	if f.changed {
		f.changed = false
		_ = unix.Fchmod(int(f.Fd()), f.mode)
	}
}

// Entry returns the entry of the file, with the path at and the original mode.
func (f *File) Entry(at string) (*entry.Entry, error) {
	e, err := beneath.ReadEntry(f.File, "")
	if err != nil {
		return nil, PathError("read", at, err)
	}
	e.Path = at
	if f.changed {
		e.Mode = f.mode
	}
	return e, nil
}

// OpenRoot opens the directory at a path for reading.
func OpenRoot(path string) (*File, error) { return OpenPath(path, 0o500) }

// OpenPath opens the directory at a path. rights are the mode bits that the owner needs while it is open.
func OpenPath(path string, rights uint32) (*File, error) {
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, errclass.Ensure(err)
	}
	defer parent.Close()
	dir, err := OpenDirWith(parent, filepath.Base(path), rights)
	return dir, errclass.Ensure(err)
}

// OpenTree is like OpenRoot, but restores the mode before it returns.
func OpenTree(path string) (*os.File, error) {
	f, err := OpenRoot(path)
	if err != nil {
		return nil, err
	}
	f.Restore()
	return f.File, nil
}

// Link makes a hard link, as name in dir, to the file at the path from below root.
func Link(root *os.File, from string, dir *os.File, name string) error {
	d, err := openBelow(root, path.Dir(from))
	if err != nil {
		return err
	}
	defer d.Close()
	return PathError("link", from, unix.Linkat(int(d.Fd()), path.Base(from), int(dir.Fd()), name, 0))
}
