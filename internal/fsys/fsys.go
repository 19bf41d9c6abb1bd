// Package fsys is the seam between Tank and the file system: every change of a root goes through an
// FS.
//
// It owns nothing on disk.
//
// Its invariant: an FS reports each change that can be lost or torn by a crash as one operation, in
// the order in which the calls began. A test can therefore make any of them fail, hang or be the
// last one (package fsystest), and can derive from the recorded history what a power cut may leave.
//
// The surprising rule: building or deleting a whole directory is one operation (Build, RemoveTree),
// whose function writes or deletes below the directory with system calls of its own; so is a
// transaction of the database (Commit). Unpacking a layer thus costs one call of an interface, not
// one for each file. Reading needs no FS: use package os.
package fsys

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
)

// FS changes files and directories. Its errors are those of package os and have an errdefs class
// (package errclass); those of an open File have none. All methods may be called by several
// goroutines at once.
type FS interface {
	// OpenFile opens a file to write or sync it, as os.OpenFile does.
	OpenFile(path string, flag int, perm fs.FileMode) (File, error)
	// Mkdir makes one directory.
	Mkdir(path string, perm fs.FileMode) error
	// Rename renames from to to, and replaces an existing to.
	Rename(from, to string) error
	// Link makes a hard link to the file from, at the path to.
	Link(from, to string) error
	// Remove deletes a file or an empty directory.
	Remove(path string) error
	// RemoveTree calls remove, which deletes path and everything below it.
	RemoveTree(path string, remove func() error) error
	// Build calls fill, which makes the directory path and everything below it, and then, unless it
	// is nil, sync, which forces that to the disk. Without a sync, a later Syncfs has to make the
	// directory durable.
	Build(path string, fill, sync func() error) error
	// SyncDir forces the entries of a directory to the disk.
	SyncDir(path string) error
	// Syncfs forces everything that was written to the file system of path to the disk.
	Syncfs(path string) error
	// Commit calls commit, which changes the database at path and syncs it. After a crash the
	// database has the whole change or nothing of it. It has the change if Commit returned nil.
	// Nothing but the database is synced.
	Commit(path string, commit func() error) error
}

// File is a file that is open for writing. *os.File implements it.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	Name() string
	// Fd returns the descriptor, for calls that change nothing: statfs, dup, sync_file_range.
	Fd() uintptr
	Stat() (fs.FileInfo, error)
	// Sync forces the file's bytes and attributes to the disk.
	Sync() error
	Truncate(size int64) error
	Chmod(mode fs.FileMode) error
}

// OS is the file system of the operating system. Its files are of type *os.File, so that io.Copy
// can use copy_file_range.
var OS FS = osFS{}

type osFS struct{}

func (osFS) OpenFile(path string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(path, flag, perm)
	if err != nil {
		return nil, errclass.Ensure(err) // f in an interface would not be nil
	}
	return f, nil
}

func (osFS) Mkdir(path string, perm fs.FileMode) error {
	return errclass.Ensure(os.Mkdir(path, perm))
}

func (osFS) Rename(from, to string) error { return errclass.Ensure(os.Rename(from, to)) }

func (osFS) Link(from, to string) error { return errclass.Ensure(os.Link(from, to)) }

func (osFS) Remove(path string) error { return errclass.Ensure(os.Remove(path)) }

func (osFS) RemoveTree(_ string, remove func() error) error {
	return errclass.Ensure(remove())
}

func (osFS) Build(_ string, fill, sync func() error) error {
	err := fill()
	if err == nil && sync != nil {
		err = sync()
	}
	return errclass.Ensure(err)
}

func (osFS) Commit(_ string, commit func() error) error { return errclass.Ensure(commit()) }

func (osFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return errclass.Ensure(err)
	}
	return errclass.Ensure(errors.Join(d.Sync(), d.Close()))
}

// Syncfs falls back to sync(2), which takes longer and reports no errors of the disk, where a
// sandbox has no syncfs or forbids it.
func (osFS) Syncfs(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return errclass.Ensure(err)
	}
	err = unix.Syncfs(int(d.Fd()))
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		unix.Sync()
		err = nil
	case err != nil:
		err = &fs.PathError{Op: "syncfs", Path: path, Err: err}
	}
	return errclass.Ensure(errors.Join(err, d.Close()))
}

// WriteFile writes data to a file, as os.WriteFile does. It does not sync the file.
func WriteFile(fsys FS, path string, data []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errclass.Ensure(errors.Join(err, f.Close()))
}
