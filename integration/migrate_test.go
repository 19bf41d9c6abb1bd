package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// reconfigure stops containerd and starts it with another configuration on the same root, as on a node.
func (c *Containerd) reconfigure(o ContainerdOptions) {
	c.env.t.Helper()
	o.setName()
	c.Stop()
	if err := os.WriteFile(filepath.Join(c.Dir, "config.toml"), []byte(containerdConfig(c.Dir, o)), 0o644); err != nil {
		c.env.t.Fatal(err)
	}
	c.Snapshotter = o.Snapshotter
	c.Start()
}

// fails checks that a command of ctr fails with a message.
func (c *Containerd) fails(t *testing.T, when, message string, args ...string) {
	t.Helper()
	if res := c.CtrResult(args...); res.Code == 0 || !strings.Contains(res.Stderr, message) {
		t.Errorf("%s: want %q: %s", when, message, res)
	}
}

// TestMigration: a node changes from overlayfs and containerd's own content store to Tank and back.
// Containers keep running. Images are still listed after each change, but cannot be used until they are removed and
// pulled again; docs/kubernetes.md quotes the messages.
func TestMigration(t *testing.T) {
	t.Parallel()
	e := New(t)
	r := e.NewRegistry()
	k := e.NewTank()
	k.Serve()
	own := ContainerdOptions{Snapshotter: "overlayfs", Registries: []*Proxy{r.Proxy}}
	with := own
	with.Snapshotter, with.Import = "tank", k.DropIn()
	c := e.NewContainerd(own)
	for name, text := range map[string]string{"of-overlayfs:1": "one\n", "of-tank:1": "two\n"} {
		img, _ := smallImage(t, []Entry{file("etc/one", 0o644, text)})
		r.PushBuilt(img, "test/"+name)
	}
	turn := func(when, ref string, to ContainerdOptions) *containerSet {
		t.Helper()
		c.Pull(ref)
		h := c.startContainers(t, 2, ref, "/etc/one")
		c.reconfigure(to)
		h.checkAlive(t, when)
		h.checkTasks(t, when)
		if out := c.Ctr("images", "ls", "-q"); !strings.Contains(out, ref) {
			t.Errorf("%s: images: %q", when, out)
		}
		c.fails(t, when, "not found", c.runArgs([]string{"--rm"}, ref, e.Name("new"))...)
		c.fails(t, when, "not found", c.pullArgs(ref)...) // containerd's records still have the blobs
		c.Ctr("images", "rm", "--sync", ref)
		c.Pull(ref)
		c.checkHello(t, when, ref)
		return h
	}
	turn("to Tank", TestRegistry+"/test/of-overlayfs:1", with).remove(t)
	h := turn("back", TestRegistry+"/test/of-tank:1", own)
	for id := range h.pids {
		c.Ctr("tasks", "rm", "--force", id)
		c.fails(t, "back", "snapshotter not loaded: tank: invalid argument", "containers", "rm", id)
		c.Ctr("containers", "rm", "--keep-snapshot", id)
	}
	if left := k.Leftovers(); len(left) == 0 {
		t.Error("nothing is left in Tank's root, so the release tests nothing")
	}
	k.MustRun("release", "containerd")
	k.MustRun("gc")
	checkEmpty(t, k)
}
