package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestContainerdTree: containerd with Tank's drop-in pulls an image and unpacks its layers in parallel. The mounted
// image is the listed tree.
func TestContainerdTree(t *testing.T) {
	images := func(t *testing.T, f Fixture) {
		e := New(t)
		k, c, r := e.NewNode()
		r.Push(f.Layout, f.Ref, f.Name)
		ref := TestRegistry + "/" + f.Name
		c.Pull(ref)
		dir := c.Mount(ref)
		CheckTree(t, "ctr images mount", f.Tree, dir)
		if m := mountOf(t, dir); !strings.Contains(m, " overlay ") ||
			!strings.Contains(m, filepath.Join(k.Root, "layers")) {
			t.Errorf("mounted as %q, not as overlay on %s/layers", m, k.Root)
		}
		c.Unmount(dir)
	}
	eachImage(t, images)
	t.Run("corner", func(t *testing.T) { images(t, CornerFixture(t)) })
}

// mountOf returns the line of /proc/mounts about a mount point, or "".
func mountOf(t testing.TB, dir string) string {
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == dir {
			return line
		}
	}
	return ""
}

// TestRun: ctr pulls, runs and removes an image.
func TestRun(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		e := New(t)
		_, c, r := e.NewNode()
		r.Push(f.Layout, f.Ref, f.Name)
		ref := TestRegistry + "/" + f.Name
		c.Pull(ref)
		if got := c.Run(ref, e.Name("hello")); got != helloText {
			t.Errorf("printed %q", got)
		}
		c.RemoveImage(ref)
		if out := c.Ctr("images", "ls", "-q"); out != "" {
			t.Errorf("images after rm: %q", out)
		}
		if out := c.Ctr("snapshots", "--snapshotter", "tank", "ls"); strings.Count(out, "\n") > 1 {
			t.Errorf("snapshots after rm: %q", out)
		}
	})
}

// TestPod: CRI runs a container in a pod with host network.
func TestPod(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		e := New(t)
		_, c, r := e.NewNode()
		r.Push(f.Layout, f.Ref, f.Name)
		r.PushPause()
		checkPod(t, c, TestRegistry+"/"+f.Name)
	})
}
