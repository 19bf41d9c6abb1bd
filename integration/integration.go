// Package integration tests Tank from outside, against real programs: containerd, ctr,
// containerd-shim-runc-v2, runc, the distribution registry and Tank's own binary, all on private paths
// below one short directory per test.
//
// An Env owns that directory and everything that was started or mounted for it. It finds processes by their pid, shims
// and containers by the containerd address in their arguments, which is a path below the directory, and mounts by their
// mount points below it.
//
// Its invariant: when a test ends, however it ends, exactly what its Env started is gone.
//
// The surprising rule: nothing here may import Tank's packages. Tests observe Tank in registry requests, strace output,
// inode numbers, /proc and directory listings, never in its logs or counters.
package integration

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Env is the environment of one test: a short private directory, the programs, and the processes that it started.
type Env struct {
	t   testing.TB
	Dir string // short, below /tmp: unix socket paths have 108 bytes
	Bin string // directory with containerd's programs; first in the PATH of everything that is started

	tools string // directory with the programs that are the same for every version of containerd

	mu    sync.Mutex
	procs []*Process
}

// New makes the environment of t. Where it cannot work, t is skipped, or with CI=true fails.
func New(t testing.TB) *Env {
	t.Helper()
	return NewWith(t, cmp.Or(os.Getenv("TANK_TEST_CONTAINERD"), Pinned))
}

// NewWith is New with another version of containerd.
func NewWith(t testing.TB, containerd string) *Env {
	t.Helper()
	Require(t)
	tools, err := Build()
	if err != nil {
		t.Fatalf("test programs: %v", err)
	}
	bin, err := BuildContainerd(containerd)
	if err != nil {
		t.Fatalf("test programs: %v", err)
	}
	dir, err := os.MkdirTemp("/tmp", "tk")
	if err != nil {
		t.Fatal(err)
	}
	e := &Env{t: t, Dir: dir, Bin: bin, tools: tools}
	for _, d := range []string{"tmp", "log"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(e.close)
	return e
}

// Use makes e report failures to the subtest t, until t ends.
func (e *Env) Use(t testing.TB) {
	outer := e.t
	e.t = t
	t.Cleanup(func() { e.t = outer })
}

// Path joins names to the environment's directory.
func (e *Env) Path(names ...string) string {
	return filepath.Join(append([]string{e.Dir}, names...)...)
}

// Name makes a container or namespace name that no other test and no other user of the machine has.
func (e *Env) Name(stem string) string {
	return fmt.Sprintf("%s-%s-%s", filepath.Base(e.Dir), stem, randomHex(3))
}

// environ returns the environment of every program: the private programs first in the PATH, and TMPDIR
// below the directory.
func (e *Env) environ() []string {
	var env []string
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "PATH", "TMPDIR", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SNAPSHOTTER", "TANK_CACHE",
			"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID":
		default:
			env = append(env, v)
		}
	}
	return append(env, "PATH="+e.Bin+":"+os.Getenv("PATH"), "TMPDIR="+e.Path("tmp"), "OTEL_TRACES_EXPORTER=none",
		"XDG_CACHE_HOME="+e.Path("cache"), "XDG_CONFIG_HOME="+e.Path("config"))
}

// close ends everything that the environment started, in reverse order, and removes its directory. The order matters:
// processes that could start others first, then shims with their containers, then mounts, then files.
func (e *Env) close() {
	e.t.Helper()
	if e.t.Failed() {
		e.printLogs()
	}
	e.mu.Lock()
	procs := e.procs
	e.mu.Unlock()
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].Stop()
	}
	if err := endShims(e.Dir); err != nil {
		e.t.Errorf("end shims: %v", err)
	}
	removeCgroups(filepath.Base(e.Dir))
	if err := unmountBelow(e.Dir); err != nil {
		e.t.Errorf("unmount: %v", err)
	}
	if os.Getenv("TANK_TEST_KEEP") != "" && e.t.Failed() {
		e.t.Logf("kept %s", e.Dir)
		return
	}
	if err := os.RemoveAll(e.Dir); err != nil {
		e.t.Errorf("remove %s: %v", e.Dir, err)
	}
}

// printLogs shows the end of each process's log.
func (e *Env) printLogs() {
	names, _ := filepath.Glob(e.Path("log", "*"))
	for _, name := range names {
		if strings.HasSuffix(name, "-registry") {
			continue // it logs each request for a missing blob
		}
		if b := tail(name, 6000); len(b) > 0 {
			e.t.Logf("--- %s\n%s", filepath.Base(name), b)
		}
	}
}

// tail returns the last bytes of a file, at most limit; nil if it cannot read them.
func tail(name string, limit int64) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil
	}
	n := min(st.Size(), limit)
	b := make([]byte, n)
	if _, err := f.ReadAt(b, st.Size()-n); err != nil {
		return nil
	}
	return b
}

// Eventually polls cond until it returns true. After limit it fails the test with the text what.
func Eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b)
}
