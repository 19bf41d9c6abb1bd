package snapshot_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/log"
)

// childEnv is the environment variable that tells a test binary which child of a test it is. Its value is one of the
// kinds below, followed by an argument.
const (
	childEnv     = "SNAPSHOT_TEST_CHILD"
	worldChild   = "world:"
	userChild    = "user:"
	killChild    = "kill:"
	sandboxChild = "sandbox:"
)

// TestMain silences the warnings of background work, because foreground calls return the same errors. In the child of
// TestWorld, it enters the world before the tests run.
func TestMain(m *testing.M) {
	if err := log.SetLevel("error"); err != nil {
		panic(err)
	}
	dir, ok := childOf(worldChild)
	if !ok {
		os.Exit(m.Run())
	}
	world, err := enterWorld(dir)
	if err == nil {
		err = world.judge(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// childOf returns the argument of a child process of this kind. ok is false in any other process.
func childOf(kind string) (arg string, ok bool) {
	v := os.Getenv(childEnv)
	if len(v) < len(kind) || v[:len(kind)] != kind {
		return "", false
	}
	return v[len(kind):], true
}

// again returns a command that runs the given tests in a copy of the test binary, which every user may execute.
func again(t *testing.T, kind, arg, tests string) *exec.Cmd {
	t.Helper()
	dir := publicDir(t)
	exe := filepath.Join(dir, "test")
	from, err := os.Open("/proc/self/exe")
	must(t, err)
	defer from.Close()
	to, err := os.OpenFile(exe, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(to, from)
	must(t, err)
	must(t, to.Close())
	must(t, os.Chmod(exe, 0o755))
	cmd := exec.Command(exe, "-test.run="+tests, "-test.timeout=400s")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), childEnv+"="+kind+arg)
	return cmd
}

// publicDir returns a temporary directory that every user can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "snapshot-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// requireChildren skips a test that cannot start its child process. In CI the test fails.
func requireChildren(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skip(err)
}
