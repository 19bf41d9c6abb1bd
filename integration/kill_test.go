package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startSlowly makes a pull of the image take seconds, starts it, and returns when a good part of its bytes were sent.
func startSlowly(t *testing.T, r *Registry, img Image, start func() *Process) *Process {
	t.Helper()
	var total, biggest int64
	for _, l := range img.Layers {
		total, biggest = total+l.Size, max(biggest, l.Size)
	}
	r.SetRate(biggest / 3)
	r.ResetLog()
	pull := start()
	Eventually(t, 30*time.Second, "a part of the image is sent", func() bool {
		if !pull.Running() {
			t.Fatalf("the pull ended early: %s", tail(pull.Log, 4000))
		}
		return r.Sent() > total*2/5
	})
	return pull
}

// TestKillCLI: kill -9 in the middle of a pull, with and without a daemon, then a retry.
func TestKillCLI(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		for _, daemon := range []bool{false, true} {
			t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
				e := New(t)
				r := e.NewRegistry()
				r.Push(f.Layout, f.Ref, f.Name)
				k := e.NewTank()
				if daemon {
					k.Serve()
				}
				startSlowly(t, r, f.Image, func() *Process { return k.StartPull(r.Ref(f.Name)) }).Kill9()
				r.SetRate(0)
				CheckTree(t, "pull again", f.Tree, k.Pull(r.Ref(f.Name)))
				k.MustRun("check")
			})
		}
	})
}

// TestKillDaemon: kill -9 of the daemon in the middle of pulls through both doors, then a retry.
func TestKillDaemon(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		e := New(t)
		k, c, r := e.NewNode()
		r.Push(f.Layout, f.Ref, f.Name)
		ref := TestRegistry + "/" + f.Name

		pull := startSlowly(t, r, f.Image, func() *Process { return c.StartPull(ref) })
		k.Daemon().Kill9()
		if code, err := pull.Wait(time.Minute); err != nil || code == 0 {
			t.Errorf("ctr images pull without a daemon: exit %d, %v", code, err)
		}
		r.SetRate(0)
		k.Serve()
		c.AwaitPlugin()
		c.Pull(ref)
		dir := c.Mount(ref)
		CheckTree(t, "ctr images mount", f.Tree, dir)
		c.Unmount(dir)
		k.MustRun("check")
		c.RemoveImage(ref)
		k.MustRun("gc") // or the pull takes the blobs that nobody swept yet

		pull = startSlowly(t, r, f.Image, func() *Process { return k.StartPull(r.Ref(f.Name)) })
		k.Daemon().Kill9()
		r.SetRate(0)
		if _, err := pull.Wait(time.Minute); err != nil { // it may go on by itself, as the root is free now
			t.Error(err)
		}
		k.Serve()
		CheckTree(t, "pull", f.Tree, k.Pull(r.Ref(f.Name)))
		k.MustRun("check")
	})
}

// TestKillContainerd: kill -9 of containerd in the middle of a pull, then a retry.
func TestKillContainerd(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		e := New(t)
		k, c, r := e.NewNode()
		r.Push(f.Layout, f.Ref, f.Name)
		ref := TestRegistry + "/" + f.Name
		pull := startSlowly(t, r, f.Image, func() *Process { return c.StartPull(ref) })
		c.Kill9()
		if _, err := pull.Wait(time.Minute); err != nil {
			t.Error(err)
		}
		r.SetRate(0)
		c.Start()
		c.Pull(ref)
		dir := c.Mount(ref)
		CheckTree(t, "ctr images mount", f.Tree, dir)
		c.Unmount(dir)
		k.MustRun("check")
	})
}

// TestContainerSurvives: a running container does not notice that the daemon, then containerd, is
// killed and comes back.
func TestContainerSurvives(t *testing.T) {
	e := New(t)
	k, c, r := e.NewNode()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := TestRegistry + "/" + f.Name
	c.Pull(ref)
	id := e.Name("count")
	pid, _ := c.RunDetached(ref, id, "/usr/bin/hello", "count", "/counter")
	counts := func(when string) {
		t.Helper()
		before := counted(t, pid)
		Eventually(t, 10*time.Second, "the container counts "+when, func() bool { return counted(t, pid) > before+5 })
		if sum, err := fileSHA256(fmt.Sprintf("/proc/%d/root/lib/x", pid)); err != nil || sum == "" {
			t.Errorf("a file of the image, %s: %v", when, err)
		}
	}
	Eventually(t, 10*time.Second, "the container starts to count", func() bool { return counted(t, pid) > 0 })
	counts("at first")
	k.Daemon().Kill9()
	counts("without the daemon")
	k.Serve()
	c.AwaitPlugin()
	counts("with a new daemon")
	c.Kill9()
	counts("without containerd")
	c.Start()
	counts("with a new containerd")
	if out := c.Ctr("tasks", "ls"); !strings.Contains(out, fmt.Sprint(pid)) {
		t.Errorf("containerd lost the task: %q", out)
	}
	c.RemoveContainer(id)
	k.MustRun("check")
}

// counted is how many lines the container wrote into its own root filesystem.
func counted(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "root", "counter"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatalf("the container's root filesystem: %v", err)
	}
	return strings.Count(string(b), "\n")
}
