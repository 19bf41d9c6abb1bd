package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/socket"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// squatter is a process that pretends to own a root: it asks for all credentials and gives false answers.
type squatter struct {
	tank.Service // nil: the other methods panic, and the server recovers
	root         string
	hosts        []string // to ask for credentials of

	mu     sync.Mutex // guards the fields below
	rootfs string     // to answer
	got    map[string]tank.Credential
	opts   tank.PullOptions
	seen   int // calls
}

func (s *squatter) Root() string { return s.root }

func (s *squatter) answer(rootfs string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rootfs = rootfs
}

func (s *squatter) Images(context.Context) ([]tank.ImageInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen++
	return nil, nil
}

func (s *squatter) Pull(ctx context.Context, ref string, opts *tank.PullOptions) (*tank.Image, error) {
	got := map[string]tank.Credential{}
	for _, host := range s.hosts {
		got[host], _ = opts.Credentials(ctx, host)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.got, s.opts = s.seen+1, got, *opts
	d := digest.FromString("x")
	return &tank.Image{Ref: ref, Digest: d, Manifest: d, Rootfs: s.rootfs}, nil
}

// squat makes s the owner of a root that a command has made: it holds the lock and listens on the root's socket as
// user uid.
func squat(t *testing.T, s *squatter, uid int) {
	t.Helper()
	reg, _, _, _, _ := registry(t)
	s.root = filepath.Join(t.TempDir(), "root")
	if _, stderr, code := output(t, "pull", "--root", s.root, reg.Host+"/hello:1"); code != 0 {
		t.Fatal(stderr)
	}
	lock, err := os.OpenFile(filepath.Join(s.root, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	listener, err := listenAs(s.root, uid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- admin.Serve(ctx, listener, s, &admin.ServeOptions{Drain: time.Millisecond}) }()
	t.Cleanup(func() { cancel(); <-served })
}

// listenAs listens on the socket of a root with the effective user uid, which the kernel reports to clients.
func listenAs(root string, uid int) (l net.Listener, err error) {
	path, release, err := socket.Path(root, admin.SocketName)
	if err != nil {
		return nil, err
	}
	defer release()
	done := make(chan struct{})
	go func() { // the thread ends with the goroutine
		defer close(done)
		runtime.LockOSThread()
		fd, e := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if e != nil {
			err = e
			return
		}
		file := os.NewFile(uintptr(fd), "socket")
		defer file.Close()
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return
		}
		// This changes the user of one thread; unix.Setresuid changes the user of all threads.
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			err = e
			return
		}
		if err = unix.Listen(fd, 16); err == nil {
			l, err = net.FileListener(file)
		}
	}()
	<-done
	return l, err
}

// credentials makes a docker config with a password for each host, and returns the variable that names it.
func credentials(t *testing.T, hosts ...string) []string {
	t.Helper()
	var auths []string
	for _, h := range hosts {
		auths = append(auths, fmt.Sprintf("%q:{\"auth\":%q}", h,
			base64.StdEncoding.EncodeToString([]byte("user:password of "+h))))
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/config.json", []byte(`{"auths":{`+strings.Join(auths, ",")+`}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"DOCKER_CONFIG=" + dir}
}

// TestOwnerGetsOnlyWhatIsForThePull: a command sends to the process that owns a root only the files and passwords for
// the registry of the reference.
func TestOwnerGetsOnlyWhatIsForThePull(t *testing.T) {
	t.Parallel()
	hosts := t.TempDir()
	for name, data := range map[string]string{
		"registry.test/hosts.toml":   "server = \"https://registry.test\"\n[host.\"https://mirror.test:5000\"]\n",
		"registry.test/client.key":   "the registry's",
		"registry.test/unrelated.md": "x",
		"other.test/client.key":      "another's",
		"_default/client.key":        "the default's",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(hosts, name)), 0o755),
			os.WriteFile(filepath.Join(hosts, name), []byte(data), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	all := []string{"registry.test", "mirror.test:5000", "other.test", "docker.io", "mirror.test"}
	for _, tt := range []struct {
		ref          string
		files, creds []string
	}{
		{"registry.test/x:1", []string{"registry.test/client.key", "registry.test/hosts.toml"},
			[]string{"mirror.test:5000", "registry.test"}},
		{"other.test/x:1", []string{"other.test/client.key"}, []string{"other.test"}},
		{"x:1", []string{"_default/client.key"}, []string{"docker.io"}},
	} {
		t.Run(tt.ref, func(t *testing.T) {
			t.Parallel()
			s := &squatter{hosts: all}
			squat(t, s, os.Geteuid())
			rootfs := filepath.Join(s.root, "rootfs", "sha256", strings.Repeat("a", 64))
			s.answer(rootfs)
			cmd := command(t, credentials(t, all...), "pull", "--root", s.root, "--hosts-dir", hosts, tt.ref)
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), rootfs) {
				t.Fatalf("%v: %s", err, out)
			}
			var creds []string
			for host, c := range s.got {
				if c != (tank.Credential{}) {
					creds = append(creds, host)
				}
			}
			slices.Sort(creds)
			if files := slices.Sorted(maps.Keys(s.opts.HostsFiles)); !slices.Equal(files, tt.files) ||
				!slices.Equal(creds, tt.creds) {
				t.Errorf("files %q, want %q; credentials for %q, want %q", files, tt.files, creds, tt.creds)
			}
		})
	}
}

// TestUnreadableHostsDirectory: if a pull through another process cannot read its hosts directory, that is a
// usage error with the advice for a missing permission.
func TestUnreadableHostsDirectory(t *testing.T) {
	t.Parallel()
	s := &squatter{}
	squat(t, s, os.Geteuid())
	hosts := t.TempDir()
	if err := os.Mkdir(filepath.Join(hosts, "_default"), 0); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, nil, "pull", "--root", s.root, "--hosts-dir", hosts, "registry.test/x:1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	done := make(chan error, 1)
	go func() { // the thread ends with the goroutine, because it may lack capabilities
		runtime.LockOSThread()
		if os.Geteuid() == 0 { // without these capabilities, permissions count for uid 0 as well
			for _, c := range []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH} {
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
					done <- err
					return
				}
			}
		}
		done <- cmd.Run()
	}()
	err := <-done
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); code != exitUsage ||
		!strings.Contains(stderr.String(), cause.Cause{Kind: cause.Denied}.Hint()) {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

// TestOwnerNamesNoPath: a command neither prints nor copies a rootfs that is outside of the root.
func TestOwnerNamesNoPath(t *testing.T) {
	t.Parallel()
	elsewhere := t.TempDir()
	if err := os.WriteFile(elsewhere+"/secret", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	hex := strings.Repeat("a", 64)
	for name, rootfs := range map[string]func(root string) string{
		"elsewhere": func(string) string { return elsewhere },
		"through dots": func(root string) string {
			return root + "/rootfs/sha256/../../../../" + elsewhere + "/" + hex
		},
		"no digest":      func(root string) string { return root + "/rootfs/sha256/x" },
		"another prefix": func(root string) string { return root + "x/rootfs/sha256/" + hex },
		"the root":       func(root string) string { return root },
		"relative":       func(string) string { return "rootfs/sha256/" + hex },
		"escapes":        func(root string) string { return root + "/rootfs/sha256/\x1b[31m" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &squatter{}
			squat(t, s, os.Geteuid())
			s.answer(rootfs(s.root))
			to := filepath.Join(t.TempDir(), "to")
			for _, args := range [][]string{nil, {"--json"}, {"--to", to}} {
				out, stderr, code := output(t, append([]string{"pull", "--root", s.root, "x:1"}, args...)...)
				if code == 0 || out != "" || !strings.Contains(stderr, "does not lie in the root") {
					t.Errorf("%q: exit code %d, %q, %s", args, code, out, stderr)
				}
			}
			if _, err := os.Stat(to); !os.IsNotExist(err) {
				t.Errorf("something was copied: %v", err)
			}
		})
	}
}

// TestOwnerOfAnotherUser: a command sends nothing to a process of another user, even if that holds the lock of this
// user's root.
func TestOwnerOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("has to run as root")
		}
		t.Skip("listening as another user needs root")
	}
	s := &squatter{hosts: []string{"docker.io"}}
	squat(t, s, 12345)
	for _, args := range [][]string{
		{"pull", "--root", s.root, "x:1"}, {"images", "--root", s.root},
		{"pull", "--address", filepath.Join(s.root, admin.SocketName), "x:1"},
	} {
		cmd := command(t, credentials(t, "docker.io"), args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil || len(out) > 0 || !strings.Contains(stderr.String(), "uid 12345") {
			t.Errorf("%q: %v, %q, %s", args, err, out, stderr.String())
		}
	}
	if s.seen > 0 {
		t.Errorf("it was asked %d times, and got %v", s.seen, s.got)
	}
}

// TestSocketOfTheRoot: a command does not follow a link that has the name of the socket.
func TestSocketOfTheRoot(t *testing.T) {
	t.Parallel()
	s := &squatter{}
	squat(t, s, os.Geteuid())
	socket := filepath.Join(s.root, admin.SocketName)
	other := filepath.Join(t.TempDir(), "s")
	if err := errors.Join(os.Rename(socket, other), os.Symlink(other, socket)); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := output(t, "images", "--root", s.root)
	if code == 0 || !strings.Contains(stderr, "not a socket") {
		t.Errorf("a link: exit code %d, %s%s", code, out, stderr)
	}
	if s.seen > 0 {
		t.Error("it was asked")
	}
}
