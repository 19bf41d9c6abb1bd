// Package regular opens Tank's own files, which have to be regular files of a bounded size.
//
// It owns nothing on disk.
//
// Its invariant: no call blocks on a pipe or a device, follows a symbolic link in the last component of a path, or
// allocates more memory than the limit.
//
// The surprising rule: a missing file is os.ErrNotExist, but a file of another type or above the limit is
// errdefs.ErrDataLoss, because it means that another program has changed Tank's own files.
package regular

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Flags are flags for opening a file for reading that another program may have replaced.
const Flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_NOCTTY | unix.O_CLOEXEC

// Open opens a regular file for reading. The error is os.ErrNotExist for a missing file and errdefs.ErrDataLoss for a
// symbolic link, a pipe, a directory, a socket or a device.
func Open(path string) (*os.File, error) { return OpenAt(unix.AT_FDCWD, path) }

// OpenAt is like Open for a path relative to dir, a file descriptor. It may follow links in all components of
// the path but the last one.
func OpenAt(dir int, path string) (*os.File, error) {
	fd, _, err := openAt(dir, path)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func openAt(dir int, path string) (fd int, st unix.Stat_t, err error) {
	for {
		if fd, err = unix.Openat(dir, path, Flags, 0); err != unix.EINTR {
			break
		}
	}
	switch err {
	case nil:
	case unix.ELOOP, unix.ENXIO: // a symbolic link, or a socket
		return -1, st, fmt.Errorf("file %q: not a regular file: %w", path, errdefs.ErrDataLoss)
	default:
		return -1, st, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, st, fmt.Errorf("file %q: not a regular file: %w", path, errdefs.ErrDataLoss)
	}
	return fd, st, nil
}

// ReadFile returns the content of a regular file of at most limit bytes. A larger file is errdefs.ErrDataLoss, and no
// more than limit bytes of it are read.
func ReadFile(path string, limit int64) ([]byte, error) {
	fd, st, err := openAt(unix.AT_FDCWD, path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if st.Size > limit {
		return nil, tooLarge(path, limit)
	}
	// The buffer has one byte more than the file. So one read finds the end of a file that does not grow. An os.File
	// needs more system calls, and the program reads some such files at each start.
	b := make([]byte, max(st.Size+1, 512)) // the size of a file in /proc is 0
	for n := 0; ; {
		m, err := unix.Pread(fd, b[n:], int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n+m < len(b) && (m == 0 || int64(n+m) == st.Size):
			return b[:n+m], nil
		}
		if n += m; int64(n) > limit {
			return nil, tooLarge(path, limit)
		}
		if n == len(b) { // the file grew
			b = append(b, make([]byte, min(int64(len(b)), limit+1-int64(n)))...)
		}
	}
}

// ReadAll returns the rest of f, at most limit bytes, with the errors of ReadFile.
func ReadAll(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, tooLarge(f.Name(), limit)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, tooLarge(f.Name(), limit)
	}
	return b, nil
}

func tooLarge(path string, limit int64) error {
	return fmt.Errorf("file %q: more than %d bytes: %w", filepath.Base(path), limit, errdefs.ErrDataLoss)
}
