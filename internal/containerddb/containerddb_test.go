package containerddb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/peer"
)

// TestMain is also the process at the other end of a connection: it opens the database TANK_PEER_DB and connects to
// TANK_PEER_SOCKET.
func TestMain(m *testing.M) {
	if socket := os.Getenv("TANK_PEER_SOCKET"); socket != "" {
		if err := call(socket, os.Getenv("TANK_PEER_DB")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func call(socket, path string) error {
	if path != "" {
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			return err
		}
		defer db.Close()
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadByte() // until the test is over
	if err != nil && conn.Close() == nil {
		return nil
	}
	return err
}

// process starts a process that has the database open, with further arguments, and returns the connection that the
// process made.
func process(t *testing.T, path string, args ...string) (net.Conn, *exec.Cmd) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "TANK_PEER_SOCKET="+socket, "TANK_PEER_DB="+path)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	must(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(20*time.Second)))
	conn, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn, cmd
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func databaseIn(t *testing.T, root string) string {
	t.Helper()
	path := filepath.Join(root, suffixes[0])
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	return path
}

// TestFind: the database of a process is found by its open files, or by its locks if the files are hidden,
// and never by a path alone.
func TestFind(t *testing.T) {
	root := t.TempDir()
	path := databaseIn(t, root)
	conn, cmd := process(t, path, "--root", root)
	p := peer.Of(conn)
	if p.PID != cmd.Process.Pid || p.Started == 0 || p.UID != uint32(os.Geteuid()) {
		t.Fatalf("the process is %+v, want %d", p, cmd.Process.Pid)
	}
	if alive, known := p.Alive(); !alive || !known {
		t.Error("it does not run")
	}
	f, err := Find(p, nil)
	must(t, err)
	if f.Path != path || f.Inode == 0 || f.Writes == 0 || !f.Born.IsZero() && time.Since(f.Born) > time.Minute {
		t.Errorf("its database is %+v", f)
	}
	elsewhere := databaseIn(t, t.TempDir())
	must(t, os.WriteFile(elsewhere, nil, 0o600))
	other, _ := process(t, path+".other")
	for _, tc := range []struct {
		name   string
		pid    int
		places []string
		want   error
		path   string
	}{
		{"by the command line", p.PID, nil, nil, path},
		{"by where it was before", peer.Of(other).PID, []string{elsewhere, path + ".other"}, nil, path + ".other"},
		{"of no place that is known", peer.Of(other).PID, []string{elsewhere, path}, ErrHidden, ""},
		{"without a lock", os.Getpid(), []string{path}, ErrNone, ""},
	} {
		t.Run("locks, "+tc.name, func(t *testing.T) {
			got, err := lockedDatabase(tc.pid, tc.places)
			if !errors.Is(err, tc.want) || got.Path != tc.path {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	if _, err := Find(peer.Of(other), nil); !errors.Is(err, ErrNone) {
		t.Errorf("of a process with another database: %v", err)
	}
	if !Busy(f) || Busy(File{Path: elsewhere, Inode: f.Inode, Born: f.Born}) {
		t.Error("busy is what is locked, and only the same file")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if alive, known := p.Alive(); alive || !known {
		t.Error("it still runs")
	}
	if Busy(f) {
		t.Error("a database is busy whose process has ended")
	}
	if w := Writes(f); w < f.Writes {
		t.Errorf("%d transactions, were %d", w, f.Writes)
	}
	if _, err := Find(p, nil); !errors.Is(err, ErrHidden) {
		t.Errorf("of a process that has ended: %v", err)
	}
}

func TestPlaces(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.toml")
	must(t, os.WriteFile(config, []byte("version = 3\n#root = \"/no\"\nroot = '/configured' # here\n"), 0o600))
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"containerd"}, "/var/lib/containerd"},
		{[]string{"containerd", "--root", "/r"}, "/r /var/lib/containerd"},
		{[]string{"containerd", "--root=/r", "--config", config}, "/r /configured /var/lib/containerd"},
		{[]string{"containerd", "-c", config}, "/configured /var/lib/containerd"},
		{[]string{"containerd", "--root", "relative", "-c", fifo}, "/var/lib/containerd"},
		{[]string{"containerd", "--root"}, "/var/lib/containerd"},
		{nil, "/var/lib/containerd"},
	} {
		var roots []string
		for _, p := range placesOf(tc.args) {
			if root, ok := strings.CutSuffix(p, suffixes[0]); ok {
				roots = append(roots, root)
			}
		}
		if got := strings.Join(roots, " "); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.args, got, tc.want)
		}
	}
}

// TestConfigFile: the path of the config comes from the command line of a containerd. If it is not certain,
// there is an error.
func TestConfigFile(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string // "" for ErrHidden
	}{
		{nil, "/etc/containerd/config.toml"},
		{[]string{"--config", "/a/b.toml"}, "/a/b.toml"},
		{[]string{"-c=/a/b.toml"}, "/a/b.toml"},
		{[]string{"--config", "b.toml"}, ""},
	} {
		conn, cmd := process(t, "", tc.args...)
		p := peer.Of(conn)
		got, err := ConfigFile(p)
		if got != tc.want || (err != nil) != (tc.want == "") || err != nil && !errors.Is(err, ErrHidden) {
			t.Errorf("%q: %q, %v", tc.args, got, err)
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		if got, err := ConfigFile(p); err == nil {
			t.Errorf("%q: %q of a process that has ended", tc.args, got)
		}
	}
	if _, err := ConfigFile(peer.Process{}); !errors.Is(err, ErrHidden) {
		t.Errorf("a process that is not visible: %v", err)
	}
}

func TestLastTransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	defer db.Close()
	for range 5 {
		var id int
		must(t, db.Update(func(tx *bolt.Tx) error {
			id = tx.ID()
			_, err := tx.CreateBucketIfNotExists([]byte("b"))
			return err
		}))
		f, err := read(path)
		must(t, err)
		if f.Writes != uint64(id) {
			t.Errorf("%d, want %d", f.Writes, id)
		}
	}
	whole, err := os.ReadFile(path)
	must(t, err)
	for name, content := range map[string][]byte{
		"empty": nil, "short": whole[:70], "zeros": make([]byte, 16<<10), "text": []byte(strings.Repeat("text", 9999)),
		"without a sum": append(append([]byte{}, whole[:60]...), make([]byte, 64<<10)...),
	} {
		must(t, os.WriteFile(path+name, content, 0o600))
		if f, err := read(path + name); err != nil || f.Writes != 0 {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

func TestMentions(t *testing.T) {
	keys := []string{"default/1/a", "default/12/sha256:b", "k8s.io/3/c", "default/1/absent", "default/2/a"}
	long := strings.Repeat("x", mentionsChunk-10)
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":            {"", ""},
		"apart":              {"..default/1/a..k8s.io/3/c", "default/1/a k8s.io/3/c"},
		"close":              {"default/default/1/adefault/12/sha256:b", "default/1/a default/12/sha256:b"},
		"across the border":  {long + "default/12/sha256:b" + long + "k8s.io/3/c", "default/12/sha256:b k8s.io/3/c"},
		"cut off":            {"default/12/sha256:", ""},
		"another number":     {"default/13/sha256:b default/1", ""},
		"a border after all": {long[10:] + strings.Repeat("default/", 9) + "1/a", "default/1/a"},
	} {
		found, err := mentions(t.Context(), iotest.OneByteReader(strings.NewReader(tc.text)), keys)
		must(t, err)
		if got := strings.Join(slices.Sorted(maps.Keys(found)), " "); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := mentions(ctx, strings.NewReader(long), keys); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
