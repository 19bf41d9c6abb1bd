package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// patienceOfTests bounds the waiting for an event that takes milliseconds on an idle machine.
const patienceOfTests = time.Minute

// daemonProcess is a running `tank-snapshotter serve` with its root and its address below dir.
type daemonProcess struct {
	dir    string
	cmd    *exec.Cmd
	stderr *lockedBuffer
}

// lockedBuffer is a buffer that can be read while a process writes to it.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startServe starts a daemon with additional environment variables, and with passed as its descriptor 3
// unless that is nil. LISTEN_PID=self stands for the daemon's process ID.
func startServe(t *testing.T, env []string, passed *os.File, args ...string) *daemonProcess {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary behaves as the program if it is called by the program's name.
	program := filepath.Join(dir, "tank-snapshotter")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemonProcess{dir: dir, stderr: &lockedBuffer{}}
	// sh runs the program with exec, so the process ID stays the same.
	script := `if [ "$LISTEN_PID" = self ]; then export LISTEN_PID=$$; fi; exec "$0" "$@"`
	d.cmd = exec.Command("sh", append([]string{
		"-c", script, program, "serve", "--config", filepath.Join(dir, "config.toml"), "--root",
		filepath.Join(dir, "root"),
		"--address", d.address(),
	}, args...)...)
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stderr = d.stderr
	if passed != nil {
		d.cmd.ExtraFiles = []*os.File{passed}
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("stderr of serve:\n%s", d.stderr)
		}
	})
	return d
}

func (d *daemonProcess) address() string { return filepath.Join(d.dir, "run", "d.sock") }

// serving waits until the daemon answers on a socket.
func (d *daemonProcess) serving(t *testing.T, socket string) {
	t.Helper()
	for deadline := time.Now().Add(patienceOfTests); ; time.Sleep(20 * time.Millisecond) {
		c, err := admin.Dial(t.Context(), socket, nil)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody answers on %s: %v", socket, err)
		}
	}
}

// stop sends a signal and returns the exit code.
func (d *daemonProcess) stop(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	if err := d.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return d.wait(t)
}

func (d *daemonProcess) wait(t *testing.T) int {
	t.Helper()
	force := time.AfterFunc(patienceOfTests, func() { _ = d.cmd.Process.Kill() })
	defer force.Stop()
	var exit *exec.ExitError
	if err := d.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return d.cmd.ProcessState.ExitCode()
}

// TestNotify: a daemon notifies the service manager when it is ready, alive and stopping.
func TestNotify(t *testing.T) {
	for name, socket := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify.sock"),
		"abstract": fmt.Sprintf("@tank-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer manager.Close()
			d := startServe(t, []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=400000"}, nil)
			var heard []string
			until := func(state string) {
				t.Helper()
				if err := manager.SetReadDeadline(time.Now().Add(patienceOfTests)); err != nil {
					t.Fatal(err)
				}
				for {
					b := make([]byte, 4096)
					n, err := manager.Read(b)
					if err != nil {
						t.Fatalf("%s did not come, only %q: %v", state, heard, err)
					}
					heard = append(heard, string(b[:n]))
					if string(b[:n]) == state {
						return
					}
				}
			}
			until("READY=1")
			if !strings.HasPrefix(heard[0], "EXTEND_TIMEOUT_USEC=") {
				t.Errorf("before the root was open: %q", heard)
			}
			for _, socket := range []string{d.address(), filepath.Join(d.dir, "root", admin.SocketName)} {
				conn, err := net.Dial("unix", socket)
				if err != nil {
					t.Errorf("READY came before %s listened: %v", socket, err)
					continue
				}
				conn.Close()
			}
			until("WATCHDOG=1")
			until("WATCHDOG=1")
			if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			until("STOPPING=1")
			if code := d.wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// TestAlive: what the watchdog takes for a sign that a daemon does not answer.
func TestAlive(t *testing.T) {
	well := func(context.Context) error { return nil }
	ill := func(context.Context) error { return errdefs.ErrUnavailable }
	missing := newProbed(filepath.Join(t.TempDir(), "missing"))
	hanging := newProbed(missing.path)
	hanging.connecting <- struct{}{} // an earlier connection was not made yet
	for name, tc := range map[string]struct {
		l  liveness
		ok bool
	}{
		"well":                     {liveness{answers: well, database: well}, true},
		"the server":               {liveness{answers: ill, database: well}, false},
		"the database":             {liveness{answers: well, database: ill}, false},
		"a socket without process": {liveness{answers: well, database: well, sockets: []*probed{missing}}, false},
		"a socket on a disk that stands still": {
			liveness{answers: well, database: well, sockets: []*probed{hanging}}, true},
	} {
		if err := tc.l.check(t.Context()); tc.ok && err != nil || !tc.ok && !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestActivation: serve uses a passed socket and does not remove its file. It refuses any other descriptor.
func TestActivation(t *testing.T) {
	dir := t.TempDir()
	fileOf := func(l interface{ File() (*os.File, error) }) *os.File {
		t.Helper()
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	path := filepath.Join(dir, "passed.sock")
	unixListener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer unixListener.Close()
	env := []string{"LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=tank.socket"}
	d := startServe(t, env, fileOf(unixListener))
	d.serving(t, path)
	d.serving(t, filepath.Join(d.dir, "root", admin.SocketName))
	if _, err := os.Lstat(d.address()); !os.IsNotExist(err) {
		t.Errorf("the address was opened beside the passed socket: %v", err)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", d.cmd.Process.Pid))
	if err != nil || !bytes.Contains(environ, []byte("LISTEN_FDS=1")) {
		t.Fatalf("the test passes nothing: %q, %v", environ, err)
	}
	if code := d.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the passed socket was removed: %v", err)
	}

	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "dgram.sock"),
		Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	plain, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for name, tc := range map[string]struct {
		env  []string
		file *os.File
		want string // part of the error
	}{
		"tcp":          {env, fileOf(tcp), "not a unix stream socket"},
		"datagrams":    {env, fileOf(datagrams), "not a listening socket"},
		"file":         {env, plain, "not a listening socket"},
		"closed":       {env, nil, "not a listening socket"},
		"two":          {[]string{"LISTEN_PID=self", "LISTEN_FDS=2"}, fileOf(unixListener), "one socket is expected"},
		"none":         {[]string{"LISTEN_PID=self", "LISTEN_FDS=0"}, nil, "one socket is expected"},
		"not a number": {[]string{"LISTEN_PID=self", "LISTEN_FDS=many"}, nil, "one socket is expected"},
	} {
		t.Run(name, func(t *testing.T) {
			d := startServe(t, tc.env, tc.file)
			if code := d.wait(t); code != exitOther || !strings.Contains(d.stderr.String(), tc.want) {
				t.Errorf("exit code %d, %s", code, d.stderr)
			}
			if _, err := os.Lstat(filepath.Join(d.dir, "root")); !os.IsNotExist(err) {
				t.Errorf("the root was opened: %v", err)
			}
		})
	}
	t.Run("another process's", func(t *testing.T) {
		d := startServe(t, []string{"LISTEN_PID=1", "LISTEN_FDS=1"}, plain)
		d.serving(t, d.address())
		if code := d.stop(t, syscall.SIGINT); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// TestGroup: only the user, or the user and the group, may open the daemon's socket. The group may never open
// the root's own socket.
func TestGroup(t *testing.T) {
	mode := func(path string) (os.FileMode, uint32) {
		t.Helper()
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode().Perm(), fi.Sys().(*syscall.Stat_t).Gid
	}
	gid := os.Getegid()
	if os.Getuid() == 0 {
		gid = 12345 // a group without a name
	}
	for _, tc := range []struct {
		args  []string
		mode  os.FileMode
		group uint32
	}{
		{nil, 0o600, uint32(os.Getegid())},
		{[]string{"--group", fmt.Sprint(gid)}, 0o660, uint32(gid)},
	} {
		d := startServe(t, nil, nil, tc.args...)
		d.serving(t, d.address())
		if m, g := mode(d.address()); m != tc.mode || g != tc.group {
			t.Errorf("%q: mode %o, group %d", tc.args, m, g)
		}
		if m, _ := mode(filepath.Join(d.dir, "root", admin.SocketName)); m != 0o600 {
			t.Errorf("%q: the root's socket has mode %o", tc.args, m)
		}
		if m, _ := mode(filepath.Dir(d.address())); m != 0o711 {
			t.Errorf("%q: the directory has mode %o", tc.args, m)
		}
		if code := d.stop(t, syscall.SIGINT); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if _, err := os.Lstat(d.address()); !os.IsNotExist(err) {
			t.Errorf("the socket was left: %v", err)
		}
	}
	d := startServe(t, nil, nil, "--group", "no-such-group")
	if code := d.wait(t); code != exitUsage || !strings.Contains(d.stderr.String(), `group "no-such-group"`) {
		t.Errorf("exit code %d, %s", code, d.stderr)
	}
	if _, err := os.Lstat(filepath.Join(d.dir, "root")); !os.IsNotExist(err) {
		t.Errorf("the root was opened: %v", err)
	}
}

// TestStopUnderPull: a signal ends a daemon in order although a call never ends by itself.
func TestStopUnderPull(t *testing.T) {
	t.Parallel()
	reg, _, _, held, _ := registry(t)
	d := startServe(t, nil, nil)
	d.serving(t, d.address())
	pull := exec.Command(filepath.Join(d.dir, "tank-snapshotter"), "pull", "--address", d.address(),
		"--progress", "none", reg.Host+"/hello:held")
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pull.Wait() }()
	for deadline := time.Now().Add(patienceOfTests); reg.Count(held.Encoded()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the pull does not request its layer")
		}
	}
	if code := d.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	own, err := tank.Open(filepath.Join(d.dir, "root"), nil)
	if err != nil {
		t.Fatalf("the root was not given up: %v", err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
}
