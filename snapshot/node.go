package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// openDir opens a directory inside dir, never through a symbolic link.
func openDir(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openFile opens a regular file inside dir for reading.
func openFile(dir *os.File, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(dir.Fd()), name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		fd, err = openUnreadable(int(dir.Fd()), name, flags)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openUnreadable opens a file that its owner, an ordinary user, has no right to read: it gets the right for a moment.
func openUnreadable(dirfd int, name string, flags int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return -1, unix.EACCES
	}
	if err := unix.Fchmodat(dirfd, name, st.Mode&0o7777|0o400, 0); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(dirfd, name, flags, 0)
	return fd, errors.Join(err, unix.Fchmodat(dirfd, name, st.Mode&0o7777, 0))
}

// makeNode makes what e describes as name in dir, with all its attributes; of a directory the attributes are for
// later, when it is full. content is a file's.
func makeNode(dir *os.File, name string, e *unpack.Entry, content *os.File) error {
	fd := int(dir.Fd())
	var err error
	switch e.Type {
	case unpack.Dir:
		return pathError("mkdir", e.Path, unix.Mkdirat(fd, name, 0o700))
	case unpack.Symlink:
		err = unix.Symlinkat(e.Target, fd, name)
	case unpack.Fifo:
		err = unix.Mknodat(fd, name, unix.S_IFIFO|0o600, 0)
	case unpack.Char:
		err = unix.Mknodat(fd, name, unix.S_IFCHR|0o600, int(e.Rdev))
	case unpack.Block:
		err = unix.Mknodat(fd, name, unix.S_IFBLK|0o600, int(e.Rdev))
	case unpack.Whiteout:
		return pathError("whiteout", e.Path, unix.Mknodat(fd, name, unix.S_IFCHR, 0))
	case unpack.File:
		err = makeFile(fd, name, content)
	default:
		err = fmt.Errorf("type %q", e.Type)
	}
	if err != nil {
		return pathError("create", e.Path, err)
	}
	return unpack.SetAttrs(dir, name, e)
}

func makeFile(dirfd int, name string, content *os.File) error {
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), name)
	if content != nil {
		err = clone(to, content)
	}
	return errors.Join(err, to.Close())
}

// clone copies a file's content: by sharing its extents where the file system can, else in the kernel, else by hand.
func clone(to, from *os.File) error {
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err == nil {
		return nil
	}
	_, err := io.Copy(to, from) // copy_file_range, where it is possible
	return err
}

// hashFile is the content hash that seals have.
func hashFile(f *os.File) ([16]byte, error) {
	h := xxh3.New()
	if _, err := io.Copy(h, f); err != nil {
		return [16]byte{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return [16]byte{}, err
	}
	return h.Sum128().Bytes(), nil
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

// removeAll deletes a tree below staging, without following links.
func removeAll(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return unpack.RemoveAll(dir, filepath.Base(path))
}
