package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into a sockaddr_un, with the zero byte at its end.
const maxSocketPath = 107

// noGroup is the group of a socket that only its user may open.
const noGroup = -1

// socketPath is a path to the socket name in dir that the kernel takes, however long dir is. It is good until release is called.
func socketPath(dir, name string) (path string, release func(), err error) {
	if path = filepath.Join(dir, name); len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("directory %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), func() { _ = unix.Close(fd) }, nil
}

// listenPath makes a listening socket that only this user may open.
func listenPath(ctx context.Context, dir, path string) (*net.UnixListener, error) {
	// Of two daemons that find the same dead socket, the second must not remove what the first put in its place.
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
	// Linux gives the file the mode that the socket has when it is bound, so it is nobody else's from its first moment.
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

// removeDead removes a socket that nobody answers on, and nothing else.
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

// groupID finds a group by name or number; noGroup for none. The error is one of usage.
func groupID(name string) (int, error) {
	if name == "" {
		return noGroup, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		// A number needs no name, as for chown.
		n, nerr := strconv.ParseUint(name, 10, 31)
		if nerr != nil {
			return noGroup, usageError{fmt.Errorf("group %q: %w", name, err)}
		}
		return int(n), nil
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		return noGroup, usageError{fmt.Errorf("group %q: id %q: %w", name, g.Gid, err)}
	}
	return n, nil
}

// socketDir makes the directory of a daemon's socket. Anybody may walk through it: the socket's own mode says who may open that. One that is
// there is left as it is.
func socketDir(ctx context.Context, dir string, gid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o711); {
	case err == nil:
		return os.Chmod(dir, 0o711) // whatever the umask
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	for d := dir; gid != noGroup; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode()&0o001 == 0 && (int(st.Gid) != gid || fi.Mode()&0o010 == 0) {
			log.G(ctx).WithField("directory", d).Warn("the socket's group can't get through its directory")
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	return nil
}
