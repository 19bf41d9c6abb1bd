package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEveryCall makes system calls of Tank's program in its root fail, one in each run, also those
// below the seam of the packages: unpacking, removing trees, reading, the database. The command fails
// with exit code 1 and advice, or succeeds; check may also report what it could not read. Then check
// finds nothing, the image that was there is there, the same command succeeds, and rm and gc leave
// nothing else. A run takes a dozen calls of each command, spread over all. TANK_TEST_CALLS=FIRST,STEP
// takes the calls FIRST, FIRST+STEP and so on, so 1,1 takes all.
func TestEveryCall(t *testing.T) {
	Require(t)
	inject, err := injectProgram()
	if err != nil {
		t.Fatal(err)
	}
	all := []unix.Errno{unix.EIO, unix.ENOSPC, unix.EROFS, unix.EMFILE, unix.ENOMEM, unix.EDQUOT}
	for _, work := range []struct {
		name   string
		pulled bool // the image is there before
		errnos []unix.Errno
		argv   func(k *TankRoot, ref string) []string
	}{
		{"pull", false, all, func(k *TankRoot, ref string) []string {
			return k.Args("pull", "--progress", "none", ref)
		}},
		{"refresh", true, all, func(k *TankRoot, ref string) []string {
			return k.Args("pull", "--progress", "none", "--refresh", ref)
		}},
		{"rm", true, all, func(k *TankRoot, ref string) []string { return k.Args("rm", ref) }},
		{"gc", false, all, func(k *TankRoot, _ string) []string { return k.Args("gc") }},
		{"check", true, all[:1], func(k *TankRoot, _ string) []string { return k.Args("check") }},
	} {
		t.Run(work.name, func(t *testing.T) {
			c := newCallsTest(t)
			c.inject = inject
			first, step := 1, 0
			if text := os.Getenv("TANK_TEST_CALLS"); text != "" {
				if _, err := fmt.Sscanf(text, "%d,%d", &first, &step); err != nil || first < 1 || step < 1 {
					t.Fatalf("TANK_TEST_CALLS=%s: not FIRST,STEP", text)
				}
			}
			for n, runs := 0, 0; ; runs++ {
				errno := work.errnos[runs%len(work.errnos)]
				seen := c.run(n, errno, work.pulled, func() []string { return work.argv(c.k, c.ref) })
				if n == 0 { // no call failed, to count them
					if seen < 10 {
						t.Fatalf("only %d calls were seen", seen)
					}
					if step == 0 {
						step = max(seen/12, 1)
					}
					n = first
					continue
				}
				if n += step; n > seen && seen < n-step {
					return
				}
			}
		})
	}
}

// callsTest is a root with one image that must survive.
type callsTest struct {
	e      *Env
	k      *TankRoot
	ref    string // of the image that commands are about
	kept   string // of the other image
	rootfs string // of kept
	inject string
}

func newCallsTest(t *testing.T) *callsTest {
	e := New(t)
	r := e.NewRegistry()
	r.PushBuilt(rawImage(t, gzipLayer(t, dir("d", 0o755), file("d/a", 0o644, "a"), hardlink("l", "d/a", 0o644)),
		gzipLayer(t, file("d/.wh.a", 0, ""), file("n", 0o600, strings.Repeat("n", 100_000)))), "test/img:1")
	r.PushBuilt(rawImage(t, gzipLayer(t, file("kept", 0o644, "kept"))), "test/kept:1")
	c := &callsTest{e: e, k: e.NewTank(), ref: r.Ref("test/img:1"), kept: r.Ref("test/kept:1")}
	if memory, err := os.MkdirTemp("/dev/shm", "tank-test-"); err == nil { // a disk would be slow
		t.Cleanup(func() { _ = os.RemoveAll(memory) })
		c.k.Root = filepath.Join(memory, "root")
	}
	c.rootfs = c.k.Pull(c.kept)
	return c
}

// run runs a command whose n-th call fails, and reports how many calls it made.
func (c *callsTest) run(n int, errno unix.Errno, pulled bool, argv func() []string) (seen int) {
	c.e.t.Helper()
	t, k := c.e.t, c.k
	if pulled {
		k.Pull(c.ref)
	}
	report := c.e.Path("report")
	res := c.e.Run(append([]string{c.inject, report, k.Root, fmt.Sprint(n), fmt.Sprint(int(errno))}, argv()...)...)
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v: %s", err, res)
	}
	var call string
	if _, err := fmt.Sscanf(string(text), "%d %s", &seen, &call); err != nil && call == "" && n > 0 && seen == 0 {
		t.Fatalf("report %q: %s", text, res)
	}
	what := fmt.Sprintf("call %d (%s) fails with %v", n, strings.TrimSpace(string(text)), errno)
	lines := strings.Count(strings.TrimSpace(res.Stderr), "\n") + 1
	unread := res.Code == 6 && argv()[1] == "check" && strings.Contains(res.Stdout, errno.Error())
	failed := res.Code == 1 && lines >= 2 && n > 0
	if res.Code != 0 && !unread && !failed || strings.Contains(res.Stderr, "goroutine ") {
		t.Errorf("%s: %s", what, res)
	}
	for _, args := range [][]string{
		k.Args("check"), argv(), k.Args("check"), k.Args("rm", c.ref), k.Args("gc"),
	} {
		again := c.e.Run(args...)
		if gone := args[1] == "rm" && again.Code == 3; again.Code != 0 && !gone {
			t.Errorf("%s: afterwards: %s\nbefore: %s", what, again, res)
		}
	}
	if text, err := os.ReadFile(filepath.Join(c.rootfs, "kept")); err != nil || string(text) != "kept" {
		t.Errorf("%s: the other image has %q, %v", what, text, err)
	}
	for _, left := range k.Leftovers() {
		if strings.HasPrefix(left, "ingest/") || strings.Contains(left, "/.") {
			t.Errorf("%s: left %s", what, left)
		}
	}
	return seen
}
