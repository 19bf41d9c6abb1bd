package socket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestRenewLeavesOthers: any file but a dead socket stays in the socket's place, and renew returns an error.
func TestRenewLeavesOthers(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]func(path string) error{
		"a file": func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"a link": func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a pipe": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"another's": func(path string) error {
			l, err := net.Listen("unix", path)
			t.Cleanup(func() { l.Close() })
			return err
		},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "s")
		l, err := Listen(t.Context(), dir, "s", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(path), put(path)); err != nil {
			t.Fatal(err)
		}
		before, _, _ := inodeOf(path)
		if renewed, err := l.renew(t.Context()); renewed || err == nil {
			t.Errorf("%s: renewed %t, %v", name, renewed, err)
		}
		l.Close()
		if after, _, err := inodeOf(path); err != nil || after != before {
			t.Errorf("%s was replaced or removed: %v", name, err)
		}
	}
}

// TestGrantFollowsNoLink: what takes a socket's place before its group is set keeps its mode and its owner.
func TestGrantFollowsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.Chmod(socket, 0o600), os.WriteFile(file, nil, 0o600), os.Symlink(file, dir+"/link"),
		os.Symlink(socket, dir+"/tosocket"),
		os.Link(socket, dir+"/hard")); err != nil {
		t.Fatal(err)
	}
	gid := os.Getegid()
	if os.Getuid() == 0 {
		gid = 12345
	}
	for _, name := range []string{"file", "link", "tosocket", "hard"} {
		if _, err := (&Group{gid, 0o660}).grant(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, path := range []string{file, socket} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 ||
			int(fi.Sys().(*syscall.Stat_t).Gid) != os.Getegid() {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
}

// TestListen: sockets below long directories work, are private, and replace what nobody answers on, but
// nothing else.
func TestListen(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("x", 120))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		// A socket whose process is gone.
		path, release, err := Path(dir, "tank.sock")
		if err != nil {
			t.Fatal(err)
		}
		dead, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		dead.(*net.UnixListener).SetUnlinkOnClose(false)
		dead.Close()
		release()

		l, err := Listen(t.Context(), dir, "tank.sock", nil)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "tank.sock")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode: %v, %v", fi, err)
		}
		if _, err := Listen(t.Context(), dir, "tank.sock", nil); !errdefs.IsUnavailable(err) {
			t.Errorf("a socket that answers was taken: %v", err)
		}
		l.Close()
		if _, err := os.Stat(filepath.Join(dir, "tank.sock")); !os.IsNotExist(err) {
			t.Errorf("the socket was left: %v", err)
		}
	}
}

// TestListenReplaces: only a socket that nobody answers on is taken away.
func TestListenReplaces(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"symlink":   func(path string) error { return os.Symlink("elsewhere", path) },
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(t.Context(), dir, name, nil); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
}

// TestListenAtOnce: of several that find a dead socket, one takes its place, and the others find that one.
func TestListenAtOnce(t *testing.T) {
	dir := t.TempDir()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	type answer struct {
		l   net.Listener
		err error
	}
	answers := make(chan answer)
	for range 8 {
		go func() {
			l, err := Listen(t.Context(), dir, "s", nil)
			answers <- answer{l, err}
		}()
	}
	var won []net.Listener
	for range 8 {
		switch a := <-answers; {
		case a.err == nil:
			won = append(won, a.l)
		case !errdefs.IsUnavailable(a.err):
			t.Errorf("another error: %v", a.err)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%d listen", len(won))
	}
	conn, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Errorf("the one that is left does not answer: %v", err)
	} else {
		conn.Close()
	}
	won[0].Close()
}

// TestGroupWindow watches a socket come: nobody else may open it before it is the group's, and others never.
func TestGroupWindow(t *testing.T) {
	gid := os.Getegid()
	if os.Getuid() == 0 {
		gid = 12345
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	stop, watched := make(chan bool), make(chan bool)
	var seen atomic.Int64
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			default:
			}
			mode, group, err := modeThenGroup(path)
			if err != nil {
				continue
			}
			seen.Add(1)
			if mode&0o007 != 0 || mode&0o070 != 0 && group != gid {
				t.Errorf("mode %o, group %d", mode, group)
				return
			}
		}
	}()
	deadline := time.Now().Add(time.Minute)
	// on a machine that is busy nobody may watch yet
	for n := 0; n < 200 || seen.Load() == 0 && time.Now().Before(deadline); n++ {
		l, err := Listen(t.Context(), dir, "s", &Options{Group: &Group{gid, 0o660}})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	close(stop)
	<-watched
	if seen.Load() == 0 {
		t.Error("nothing was seen")
	}
}

// modeThenGroup reads a file's mode, and then its group. One stat would not do: Linux fills in the group
// before the mode, without a lock, so both may change in between, and the old group would seem to have the
// new mode. (generic_fillattr in fs/stat.c.) A permission check reads the mode first.
func modeThenGroup(path string) (mode uint32, group int, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	var first, second unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &first), unix.Fstat(fd, &second)); err != nil {
		return 0, 0, err
	}
	return first.Mode & 0o777, int(second.Gid), nil
}
