package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/plugin/admin"
)

// awaitSocket waits until a daemon has made a socket again and answers on it, and returns the new file.
func awaitSocket(t *testing.T, d *daemonProcess, socket string) fs.FileInfo {
	t.Helper()
	d.serving(t, socket)
	fi, err := os.Lstat(socket)
	if err != nil {
		t.Fatal(err)
	}
	return fi
}

// TestSocketComesBack: a daemon makes its sockets again if their files are removed, for the same users.
func TestSocketComesBack(t *testing.T) {
	t.Parallel()
	gid := os.Getegid()
	if os.Getuid() == 0 {
		gid = 12345
	}
	d := startServe(t, nil, nil, "--group", fmt.Sprint(gid))
	inRoot := filepath.Join(d.dir, "root", admin.SocketName)
	d.serving(t, d.address())
	for name, remove := range map[string]struct {
		socket string
		f      func() error
	}{
		"the file":         {d.address(), func() error { return os.Remove(d.address()) }},
		"its directory":    {d.address(), func() error { return os.RemoveAll(filepath.Dir(d.address())) }},
		"the root's":       {inRoot, func() error { return os.Remove(inRoot) }},
		"for a dead one":   {d.address(), func() error { return deadSocket(d.address()) }},
		"the file, again":  {d.address(), func() error { return os.Remove(d.address()) }},
		"for another name": {d.address(), func() error { return os.Rename(d.address(), d.address()+".old") }},
	} {
		open, err := net.Dial("unix", remove.socket)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := remove.f(); err != nil {
			t.Fatal(name, err)
		}
		fi := awaitSocket(t, d, remove.socket)
		st := fi.Sys().(*syscall.Stat_t)
		mode, group := fs.FileMode(0o660), gid
		if remove.socket == inRoot {
			mode, group = 0o600, os.Getegid()
		}
		if fi.Mode().Perm() != mode || int(st.Gid) != group {
			t.Errorf("%s: mode %s, group %d", name, fi.Mode(), st.Gid)
		}
		// Open connections stay open.
		if err := open.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for b := make([]byte, 64); err == nil; _, err = open.Read(b) {
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: an open connection ends: %v", name, err)
		}
		open.Close()
	}
	if code := d.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, socket := range []string{inRoot, d.address()} {
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			t.Errorf("%s was left: %v", socket, err)
		}
	}
}

// deadSocket replaces a socket by one on which no process answers.
func deadSocket(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// TestPassedSocketComesBack: the daemon makes a passed socket again with the same mode.
func TestPassedSocketComesBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "passed.sock")
	passed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	if err := os.Chmod(path, 0o620); err != nil {
		t.Fatal(err)
	}
	file, err := passed.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for round := range 2 { // in the second round, the file of the passed socket was replaced before
		d := startServe(t, []string{"LISTEN_PID=self", "LISTEN_FDS=1"}, file)
		d.serving(t, path)
		if round == 0 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if fi := awaitSocket(t, d, path); fi.Mode().Perm() != 0o620 {
			t.Errorf("round %d: mode %s", round, fi.Mode())
		}
		if code := d.stop(t, syscall.SIGTERM); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the manager's socket was removed: %v", err)
		}
	}
}

// TestWatchdogAsksTheAddress: a daemon does not notify the watchdog if one of its sockets can not be reached.
func TestWatchdogAsksTheAddress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	d := startServe(t, []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "notify"), "WATCHDOG_USEC=1200000"}, nil)
	heard := func(within time.Duration) bool {
		for deadline := time.Now().Add(within); ; {
			b := make([]byte, 4096)
			if err := manager.SetReadDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			n, err := manager.Read(b)
			if err != nil {
				return false
			}
			if string(b[:n]) == "WATCHDOG=1" {
				return true
			}
		}
	}
	if !heard(patienceOfTests) {
		t.Fatal("nothing is heard from a daemon that is well")
	}
	// The daemon does not replace a file of another type.
	if err := errors.Join(os.Remove(d.address()), os.WriteFile(d.address(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for heard(100 * time.Millisecond) {
	}
	if heard(2 * time.Second) {
		t.Error("it says that it is well, but nobody can reach it")
	}
	if err := os.Remove(d.address()); err != nil {
		t.Fatal(err)
	}
	if !heard(patienceOfTests) {
		t.Error("it does not recover")
	}
}
