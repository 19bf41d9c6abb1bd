package snapshot

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// ownFile is an open file or directory. One of an ordinary user's, which its mode keeps from its owner, has the rights that
// were asked for until Close.
type ownFile struct {
	*os.File
	mode  uint32 // without those rights
	given bool   // whether there were any to give
}

// openOwn opens a file or a directory inside dir, never through a symbolic link; rights are those its owner needs.
func openOwn(dir *os.File, name string, rights uint32) (*ownFile, error) {
	o := &ownFile{}
	if os.Geteuid() != 0 {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, pathError("stat", name, err)
		}
		o.mode = st.Mode & 0o7777
		usable := st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&unix.S_IFMT == unix.S_IFREG
		if o.given = usable && o.mode&rights != rights && int(st.Uid) == os.Geteuid(); o.given {
			if err := unix.Fchmodat(int(dir.Fd()), name, o.mode|rights, 0); err != nil {
				return nil, pathError("chmod", name, err)
			}
		}
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if o.given {
			_ = unix.Fchmodat(int(dir.Fd()), name, o.mode, 0)
		}
		return nil, pathError("open", name, err)
	}
	o.File = os.NewFile(uintptr(fd), name)
	return o, nil
}

// Close closes the file and takes back the rights that it was given.
func (o *ownFile) Close() error {
	o.restore()
	return o.File.Close()
}

func (o *ownFile) restore() {
	if o.given {
		o.given = false
		_ = unix.Fchmod(int(o.Fd()), o.mode)
	}
}

// entry reads what the file is, without the rights that it was given.
func (o *ownFile) entry(at string) (*unpack.Entry, error) {
	e, err := unpack.ReadEntry(o.File, "")
	if err != nil {
		return nil, pathError("read", at, err)
	}
	e.Path = at
	if o.given {
		e.Mode = o.mode
	}
	return e, nil
}

// openOwnTree opens the root of a tree to read it.
func openOwnTree(path string) (*ownFile, error) { return openOwnPath(path, 0o500) }

// openOwnPath opens a directory; rights are those its owner needs.
func openOwnPath(path string, rights uint32) (*ownFile, error) {
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return openOwn(parent, filepath.Base(path), rights)
}

// openTree opens the root of a tree, and leaves its mode as it is.
func openTree(path string) (*os.File, error) {
	o, err := openOwnTree(path)
	if err != nil {
		return nil, err
	}
	o.restore()
	return o.File, nil
}

// renameTree moves a file or directory. An ordinary user may move only directories that it may write, because ".." changes: those
// others can be written meanwhile, and have their mode back on disk when it returns.
func renameTree(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	fi, lerr := os.Lstat(from)
	if lerr != nil || !fi.IsDir() || fi.Mode()&0o200 != 0 {
		return err
	}
	if os.Chmod(from, fi.Mode()|0o700) != nil {
		return err
	}
	d, lerr := os.Open(from)
	if lerr != nil {
		return errors.Join(err, os.Chmod(from, fi.Mode()))
	}
	defer d.Close()
	return errors.Join(os.Rename(from, to), d.Chmod(fi.Mode()), d.Sync())
}

// linkAt links the path from below root to name in dir.
func linkAt(root *os.File, from string, dir *os.File, name string) error {
	d, err := unpack.OpenDirBelow(root, path.Dir(from))
	if errors.Is(err, unix.EACCES) {
		return linkOwnAt(root, from, dir, name)
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return pathError("link", from, unix.Linkat(int(d.Fd()), path.Base(from), int(dir.Fd()), name, 0))
}

// linkOwnAt does what linkAt does where modes keep directories from their owner.
func linkOwnAt(root *os.File, from string, dir *os.File, name string) error {
	d, err := openDir(root, ".")
	if err != nil {
		return err
	}
	above := &ownFile{File: d}
	for c := range strings.SplitSeq(path.Dir(from), "/") {
		o, err := openOwn(above.File, c, 0o500)
		above.Close()
		if err != nil {
			return err
		}
		above = o
	}
	defer above.Close()
	return pathError("link", from, unix.Linkat(int(above.Fd()), path.Base(from), int(dir.Fd()), name, 0))
}
