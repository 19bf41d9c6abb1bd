package main

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

// lookEvery is how often a daemon checks that the files of its sockets exist.
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

// listener listens on the socket name in dir. When the socket's file was removed, renew makes another, on which the
// same Accept goes on.
type listener struct {
	dir, name string
	grantee   grantee
	makeDir   func(context.Context) error // nil: a directory that was removed is not made again
	passed    bool                        // the service manager's socket, whose file is its own

	mu     sync.Mutex // guards the fields below
	now    *net.UnixListener
	file   inode // the present one; zero for a passed socket whose file is not known
	closed bool
}

// grantee is the group that may open a socket, beside its user.
type grantee struct {
	gid  int         // noGroup: no group
	mode fs.FileMode // of a socket with a group
}

// Accept returns the next connection, also when the socket was made again meanwhile.
func (l *listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		now := l.now
		l.mu.Unlock()
		conn, err := now.Accept()
		l.mu.Lock()
		renewed := !l.closed && l.now != now
		l.mu.Unlock()
		if err != nil && renewed {
			continue
		}
		return conn, err
	}
}

// Addr is the socket's path.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path(), Net: "unix"} }

func (l *listener) path() string { return filepath.Join(l.dir, l.name) }

// Close ends Accept. It removes the socket's file unless another file has taken its place.
func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	var err error
	if path, release, e := socketPath(l.dir, l.name); e == nil && !l.passed {
		if file, _, e := inodeOf(path); e == nil && file == l.file {
			err = os.Remove(path) // while the socket still answers: afterwards another process may take its place
		}
		release()
	}
	return errors.Join(err, l.now.Close())
}

// watch renews the socket whenever its file was removed, until ctx ends.
func (l *listener) watch(ctx context.Context) {
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
			log.G(ctx).WithField("socket", l.path()).Warn("the socket's file was removed, and is made again")
			told = ""
		case err != nil && ctx.Err() == nil && err.Error() != told:
			log.G(ctx).WithError(err).Error("the socket's file was removed, and cannot be made again")
			told = err.Error()
		}
	}
}

// renew makes the socket again if its file is missing or is a dead socket. It leaves any other file in its place alone.
func (l *listener) renew(ctx context.Context) (renewed bool, err error) {
	path, release, err := socketPath(l.dir, l.name)
	if err == nil {
		file, _, e := inodeOf(path)
		release()
		if err = e; e == nil && file == l.file {
			return false, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) && l.makeDir != nil {
		if err := l.makeDir(ctx); err != nil {
			return false, err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	next, file, err := bind(ctx, l.dir, l.name, l.grantee)
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false, next.Close()
	}
	old := l.now
	l.now, l.file = next, file
	_ = old.Close() // no new client can reach it; open connections stay
	return true, nil
}

// listen makes the socket name in dir, which only this user and the grantee may open. It replaces a socket on which no
// process answers. It returns errdefs.ErrUnavailable when a process answers, and errdefs.ErrFailedPrecondition when
// something else has the name.
func listen(ctx context.Context, dir, name string, to grantee) (*listener, error) {
	now, file, err := bind(ctx, dir, name, to)
	if err != nil {
		return nil, err
	}
	return &listener{dir: dir, name: name, grantee: to, now: now, file: file}, nil
}

// adopt serves a socket that the service manager passed. If its file was removed before, renew makes it again with the
// same access.
func adopt(ctx context.Context, passed *net.UnixListener) *listener {
	passed.SetUnlinkOnClose(false)
	dir, name := filepath.Split(passed.Addr().String())
	l := &listener{dir: filepath.Clean(dir), name: name, grantee: grantee{gid: noGroup}, now: passed, passed: true}
	if file, st, err := inodeOf(passed.Addr().String()); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		l.grantee = grantee{int(st.Gid), fs.FileMode(st.Mode & 0o777)}
		if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", passed.Addr().String()); err == nil {
			conn.Close()
			l.file = file
		}
	}
	return l
}

// hasFile reports whether the socket has a name in the file system.
func (l *listener) hasFile() bool { return filepath.IsAbs(l.dir) }

// bind makes a listening socket and returns its file.
func bind(ctx context.Context, dir, name string, to grantee) (_ *net.UnixListener, file inode, err error) {
	fail := func(err error) (*net.UnixListener, inode, error) {
		return nil, inode{}, fmt.Errorf("socket %s: %w", filepath.Join(dir, name), err)
	}
	path, release, err := socketPath(dir, name)
	if err != nil {
		return fail(err)
	}
	defer release()
	l, err := listenPath(ctx, dir, path)
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false) // by then another process may have a file of that name
	if file, err = to.grant(path); err != nil {
		l.Close()
		_ = removeDead(ctx, path) // anything else with that name stays
		return fail(err)
	}
	return l, file, nil
}

// grant lets the group open a socket that was just bound, and returns its file. It follows no link and changes exactly
// the file that it looked at.
func (a grantee) grant(path string) (inode, error) {
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
	if a.gid == noGroup {
		return file, nil
	}
	// The order matters: the mode is widened only after the file has the right group.
	if err := unix.Fchownat(fd, "", -1, a.gid, unix.AT_EMPTY_PATH); err != nil {
		return inode{}, fmt.Errorf("group %d: %w", a.gid, err)
	}
	if err := unix.Fchmodat(fd, "", uint32(a.mode), unix.AT_EMPTY_PATH); err != nil {
		// The kernel is older than 6.6, or a filter refuses the call.
		if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), a.mode); err != nil {
			return inode{}, err
		}
	}
	return file, nil
}
