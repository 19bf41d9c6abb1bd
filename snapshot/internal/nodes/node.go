package nodes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
)

// OpenDir opens a directory inside dir, never through a symbolic link.
func OpenDir(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Make makes the node that e describes as name in dir, with all its attributes. A directory only gets mode 0700: the
// caller sets its attributes when its content is complete. content is the content of a file; nil makes an empty one.
// Xattrs that the file system does not support are removed from e.
func Make(ctx context.Context, dir *os.File, name string, e *entry.Entry, content *os.File) error {
	fd := int(dir.Fd())
	var err error
	switch e.Type {
	case entry.Dir:
		return PathError("mkdir", e.Path, unix.Mkdirat(fd, name, 0o700))
	case entry.Symlink:
		err = unix.Symlinkat(e.Target, fd, name)
	case entry.Fifo:
		err = unix.Mknodat(fd, name, unix.S_IFIFO|0o600, 0)
	case entry.Char:
		err = unix.Mknodat(fd, name, unix.S_IFCHR|0o600, int(e.Rdev))
	case entry.Block:
		err = unix.Mknodat(fd, name, unix.S_IFBLK|0o600, int(e.Rdev))
	case entry.File:
		return PathError("create", e.Path, makeFile(ctx, fd, name, e, content))
	default:
		err = fmt.Errorf("type %q cannot be made", e.Type)
	}
	if err != nil {
		return PathError("create", e.Path, err)
	}
	return beneath.SetAttrs(dir, name, e)
}

// makeFile makes a regular file with the content and the attributes of e.
func makeFile(ctx context.Context, dirfd int, name string, e *entry.Entry, content *os.File) error {
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), name)
	if content != nil {
		err = sparse.Copy(ctx, to, content)
	}
	if err == nil {
		err = beneath.SetAttrsOf(to, e)
	}
	return errors.Join(err, to.Close())
}

// CanClone reports whether a file in one directory can share extents with a file in the other (reflinks).
func CanClone(from, to string) bool {
	var files [2]*os.File
	for i, dir := range []string{from, to} {
		f, err := os.CreateTemp(dir, ".clone-")
		if err != nil {
			return false
		}
		defer f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return false
		}
		files[i] = f
	}
	return unix.IoctlFileClone(int(files[0].Fd()), int(files[1].Fd())) == nil
}

// Classed returns an error with an errdefs class: err itself if it has one. See errclass.Ensure.
func Classed(err error) error { return errclass.Ensure(err) }

// PathError returns err as an os.PathError, or nil if err is nil.
func PathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

// RemoveAll deletes a tree without following links. It calls freed with the bytes that each removal frees; nil: the
// bytes are not counted. It returns a leftover.Error if parts of the tree remain.
func RemoveAll(ctx context.Context, path string, freed func(bytes int64)) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	err = beneath.RemoveAll(ctx, dir, filepath.Base(path), freed)
	if left, _ := leftover.Split(err); left != nil {
		return left.Below(dir.Name())
	}
	return err
}

// SetAttrs gives the directory at a path the attributes of e. See beneath.SetAttrs.
func SetAttrs(dir string, e *entry.Entry) error {
	f, err := OpenTree(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return beneath.SetAttrsOf(f, e)
}
