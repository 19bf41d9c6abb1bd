// Package socket makes unix sockets that only one user, or one group, may open, and keeps their files in
// place.
//
// It owns the file of each socket that it made, and removes it when the listener is closed. Its invariant:
// it never replaces or removes a file other than a socket on which no process answers, and no other user can
// open a socket at any time. The surprising rule: a path may be longer than the kernel accepts; then the
// directory is opened, and the socket is named through /proc/self/fd.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxPath is the length of the longest path in a sockaddr_un, in bytes without the zero byte at its end.
const maxPath = 107

// Path returns a path of the socket name in dir that the kernel accepts, however long dir is. It is valid
// until release is called.
func Path(dir, name string) (path string, release func(), err error) {
	if path = filepath.Join(dir, name); len(path) <= maxPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("directory %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), func() { _ = unix.Close(fd) }, nil
}

// listenPath makes a listening socket that only this process's user may open.
func listenPath(ctx context.Context, dir, path string) (*net.UnixListener, error) {
	// If two processes find the same dead socket, the second must not remove the one that the first has made.
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	if err := removeDead(ctx, path); err != nil {
		return nil, err
	}
	// Linux gives the file the mode that the socket has when it is bound, so no other user can open it at
	// any time.
	private := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := private.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeDead removes a socket on which no process answers, and no other file.
func removeDead(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("not a socket, and not replaced: %w", errdefs.ErrFailedPrecondition)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another process answers there: %w", errdefs.ErrUnavailable)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	return err
}
