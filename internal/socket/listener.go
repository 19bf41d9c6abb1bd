package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// lookEvery is the interval in which Watch checks that the socket's file exists.
const lookEvery = time.Second

// inode identifies a file.
type inode struct{ dev, ino uint64 }

// inodeOf returns the file at a path, without following a link.
func inodeOf(path string) (inode, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return inode{}, st, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return inode{uint64(st.Dev), st.Ino}, st, nil //nolint:unconvert // it is 32 bits wide on some machines
}

// Options of Listen. nil means the zero value.
type Options struct {
	// Group is the group whose members may open the socket as well. nil: only this process's user may.
	Group *Group
	// MakeDir makes the directory of the socket again when it was removed. nil: then the socket is not
	// made again either.
	MakeDir func(context.Context) error
}

// Group is the group of a socket.
type Group struct {
	GID  int
	Mode fs.FileMode // of the socket's file
}

// Listener is a net.Listener on a socket's file. If that file is removed, Watch makes a new one, and
// Accept returns connections to it.
type Listener struct {
	dir, name string
	opts      Options
	passed    bool // by the service manager, which owns the socket's file

	mu      sync.Mutex // guards the fields below
	current *net.UnixListener
	file    inode // of current; the zero value if it is not known, as for some passed sockets
	closed  bool
}

// Accept returns the next connection. It goes on when the socket is made again meanwhile.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		now := l.current
		l.mu.Unlock()
		conn, err := now.Accept()
		l.mu.Lock()
		renewed := !l.closed && l.current != now
		l.mu.Unlock()
		if err != nil && renewed {
			continue
		}
		return conn, err
	}
}

// Addr returns the path of the socket's file.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.File(), Net: "unix"} }

// File returns the path of the socket's file.
func (l *Listener) File() string { return filepath.Join(l.dir, l.name) }

// Close ends Accept. It removes the socket's file unless another file has taken its place.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	var err error
	if path, release, e := Path(l.dir, l.name); e == nil && !l.passed {
		if file, _, e := inodeOf(path); e == nil && file == l.file {
			err = os.Remove(path) // while the socket still answers: afterwards another process may take its place
		}
		release()
	}
	return errors.Join(err, l.current.Close())
}

// Watch makes the socket again whenever its file was removed, until ctx ends.
func (l *Listener) Watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var told string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		renewed, err := l.renew(ctx)
		switch {
		case renewed:
			log.G(ctx).WithField("socket", l.File()).Warn("the socket's file was removed: made it again")
			told = ""
		case err != nil && ctx.Err() == nil && err.Error() != told:
			log.G(ctx).WithError(err).Error("the socket's file was removed: cannot make it again")
			told = err.Error()
		}
	}
}

// renew makes the socket again if its file is missing or is a dead socket. It leaves any other file in its
// place alone.
func (l *Listener) renew(ctx context.Context) (renewed bool, err error) {
	path, release, err := Path(l.dir, l.name)
	if err == nil {
		file, _, e := inodeOf(path)
		release()
		if err = e; e == nil && file == l.file {
			return false, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) && l.opts.MakeDir != nil {
		if err := l.opts.MakeDir(ctx); err != nil {
			return false, err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	next, file, err := bind(ctx, l.dir, l.name, l.opts.Group)
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false, next.Close()
	}
	old := l.current
	l.current, l.file = next, file
	_ = old.Close() // no new client can reach it; open connections stay
	return true, nil
}

// Listen makes the socket name in dir. It replaces a socket on which no process answers. It returns
// errdefs.ErrUnavailable if a process answers there, and errdefs.ErrFailedPrecondition if another kind
// of file has the name.
func Listen(ctx context.Context, dir, name string, opts *Options) (*Listener, error) {
	if opts == nil {
		opts = &Options{}
	}
	l, file, err := bind(ctx, dir, name, opts.Group)
	if err != nil {
		return nil, err
	}
	return &Listener{dir: dir, name: name, opts: *opts, current: l, file: file}, nil
}

// Adopt returns a listener for a socket that the service manager passed. If the socket's file is removed,
// Watch makes it again with the same group and mode.
func Adopt(ctx context.Context, passed *net.UnixListener) *Listener {
	passed.SetUnlinkOnClose(false)
	dir, name := filepath.Split(passed.Addr().String())
	l := &Listener{dir: filepath.Clean(dir), name: name, current: passed, passed: true}
	if file, st, err := inodeOf(passed.Addr().String()); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		l.opts.Group = &Group{int(st.Gid), fs.FileMode(st.Mode & 0o777)}
		if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", passed.Addr().String()); err == nil {
			conn.Close()
			l.file = file
		}
	}
	return l
}

// HasFile reports whether the socket has a name in the file system.
func (l *Listener) HasFile() bool { return filepath.IsAbs(l.dir) }

// bind makes a listening socket and returns its file.
func bind(ctx context.Context, dir, name string, group *Group) (_ *net.UnixListener, file inode, err error) {
	fail := func(err error) (*net.UnixListener, inode, error) {
		return nil, inode{}, fmt.Errorf("socket %s: %w", filepath.Join(dir, name), err)
	}
	path, release, err := Path(dir, name)
	if err != nil {
		return fail(err)
	}
	defer release()
	l, err := listenPath(ctx, dir, path)
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false) // another process may have replaced the file by then
	if file, err = group.grant(path); err != nil {
		l.Close()
		_ = removeDead(ctx, path) // anything else with that name stays
		return fail(err)
	}
	return l, file, nil
}

// grant lets the group open a socket that was just bound, and returns the socket's file. It follows no
// link and changes only the file that it checked. A nil group changes nothing.
func (g *Group) grant(path string) (inode, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return inode{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return inode{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid() || st.Nlink != 1 {
		return inode{}, fmt.Errorf("another file took its place: %w", errdefs.ErrFailedPrecondition)
	}
	file := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // see inodeOf
	if g == nil {
		return file, nil
	}
	// The order matters: the mode is widened only after the file has the right group.
	if err := unix.Fchownat(fd, "", -1, g.GID, unix.AT_EMPTY_PATH); err != nil {
		return inode{}, fmt.Errorf("group %d: %w", g.GID, err)
	}
	if err := unix.Fchmodat(fd, "", uint32(g.Mode), unix.AT_EMPTY_PATH); err != nil {
		// The kernel is older than 6.6, or a filter refuses the call.
		if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), g.Mode); err != nil {
			return inode{}, err
		}
	}
	return file, nil
}
