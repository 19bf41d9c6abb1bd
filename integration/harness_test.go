package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHarness shows, without Tank, that the base of the other tests is right: the model agrees with
// containerd's native snapshotter about the own image, the tree lister with tree.py, and containers and
// pods run here.
func TestHarness(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	r.PushPause()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := TestRegistry + "/" + f.Name
	c := e.NewContainerd(ContainerdOptions{Snapshotter: "native", Registries: []*Proxy{r.Proxy}, Sandbox: PauseRef})

	t.Run("model", func(t *testing.T) {
		e.Use(t)
		c.Pull(ref)
		dir := c.Mount(ref)
		got, err := Tree(dir)
		if err != nil {
			t.Fatal(err)
		}
		// containerd sets the times of directories that a layer only implies to now
		want := withoutTimes(f.Tree, got)
		if diffs := CompareTrees(want, withoutTimes(got, got), 20); len(diffs) > 0 {
			t.Errorf("the model differs from containerd:\n%s", strings.Join(diffs, "\n"))
		}
		compareWithTreePy(t, dir, got)
		c.Unmount(dir)
	})
	t.Run("container", func(t *testing.T) {
		e.Use(t)
		if got := c.Run(ref, e.Name("hello")); got != helloText {
			t.Errorf("printed %q", got)
		}
	})
	t.Run("pod", func(t *testing.T) {
		e.Use(t)
		checkPod(t, c, ref)
	})
}

// withoutTimes drops the time of the directories to which recent, a listing of the same tree, gives the
// time of this test run.
func withoutTimes(nodes, recent []Node) []Node {
	isNew := map[string]bool{}
	for _, n := range recent {
		if n.Type == "dir" && n.MTime > time.Now().Add(-time.Hour).Unix() {
			isNew[n.Path] = true
		}
	}
	out := append([]Node(nil), nodes...)
	for i := range out {
		if isNew[out[i].Path] {
			out[i].MTime = 0
		}
	}
	return out
}

// compareWithTreePy compares the lister with the shared one in Python, where that is here.
func compareWithTreePy(t *testing.T, dir string, want []Node) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Log("no python3: the lister is not compared with tree.py")
		return
	}
	shared := sharedImages(t)
	out, err := exec.Command(python, filepath.Join(shared, "tree.py"), dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "listing")
	if err := os.WriteFile(name, out, 0o644); err != nil {
		t.Fatal(err)
	}
	listed, err := ReadListing(name)
	if err != nil {
		t.Fatal(err)
	}
	if diffs := CompareTrees(listed, want, 20); len(diffs) > 0 {
		t.Errorf("the lister differs from tree.py:\n%s", strings.Join(diffs, "\n"))
	}
}

// checkPod runs a container of ref in a pod with host network through CRI.
func checkPod(t *testing.T, c *Containerd, ref string) {
	k := c.CRI()
	image := k.Pull(ref)
	pod, config := k.RunPod("pod")
	container := k.StartContainer(pod, config, "hello", image)
	if code := k.Await(container); code != 0 {
		t.Errorf("the container ended with %d", code)
	}
	log := string(tail(c.env.Path("log", "hello.cri"), 4000))
	if !strings.Contains(log, strings.TrimSpace(helloText)) {
		t.Errorf("the container printed %q", log)
	}
	k.RemovePod(pod)
	k.RemoveImage(ref)
}
