package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// boundedBy are the capabilities of Tank's unit. With them Tank cannot see the open files of a containerd that has all.
const boundedBy = "-all,+chown,+dac_override,+fowner,+fsetid,+mknod,+setfcap,+sys_admin"

// bounded has Tank run with the capabilities of its unit.
func (k *TankRoot) bounded() {
	k.env.t.Helper()
	requireProgram(k.env.t, "setpriv")
	const form = "#!/bin/sh\nexec setpriv --bounding-set=%s --inh-caps=-all --no-new-privs %s \"$@\"\n"
	script := fmt.Sprintf(form, boundedBy, k.bin)
	bin := k.env.Path("bounded")
	if err := os.WriteFile(bin, []byte(script), 0o755); err != nil {
		k.env.t.Fatal(err)
	}
	k.bin = bin
}

// twoContainerds is a node on which containerds come and go.
type twoContainerds struct {
	t     *testing.T
	e     *Env
	k     *TankRoot
	c     *Containerd // the one whose database changes
	image string      // the reference of the image that it runs
	// kept is a stopped container with a file that it wrote.
	kept string
}

var rootLine = regexp.MustCompile(`(?m)^root = .*$`)

// withRoot has the containerd start with another root.
func (n *twoContainerds) withRoot(root string) {
	n.t.Helper()
	config := filepath.Join(n.c.Dir, "config.toml")
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, rootLine.ReplaceAll(text, fmt.Appendf(nil, "root = %q", root)), 0o644)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.c.Start()
}

func database(root string) string {
	return filepath.Join(root, "io.containerd.metadata.v1.bolt", "meta.db")
}

// collects has a containerd pull an image, remove it and collect.
func (n *twoContainerds) collects(c *Containerd) {
	n.t.Helper()
	ref := TestRegistry + "/" + CornerFixture(n.t).Name
	c.Pull(ref)
	c.RemoveImage(ref)
}

// works checks that the containerd has its image, and that the container has its file.
func (n *twoContainerds) works(when string) {
	n.t.Helper()
	for range 2 { // also after a collection
		if got := n.c.Run(n.image, n.e.Name("again")); got != helloText {
			n.t.Errorf("%s: printed %q", when, got)
		}
		mounts := n.c.Ctr("snapshots", "--snapshotter", "tank", "mounts", "/nowhere", n.kept)
		upper := regexp.MustCompile(`upperdir=([^,\s]*)`).FindStringSubmatch(mounts)
		if upper == nil {
			n.t.Fatalf("%s: mounts of the container: %s", when, mounts)
		}
		if b, err := os.ReadFile(filepath.Join(upper[1], "kept")); err != nil || string(b) != "kept" {
			n.t.Errorf("%s: the container's file is %q, %v", when, b, err)
		}
		n.c.Ctr("images", "check")
		n.collects(n.c)
	}
}

// TestContainerds: no containerd removes what another one holds, be that another process or the same one with
// a former database, and each finds what it holds wherever its database is moved.
func TestContainerds(t *testing.T) {
	for _, tc := range []struct {
		name    string
		bounded bool
	}{{"as root", false}, {"as the unit", true}} {
		t.Run(tc.name, func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			for _, f := range []Fixture{OwnFixture(t), CornerFixture(t)} {
				r.Push(f.Layout, f.Ref, f.Name)
			}
			k := e.NewTank()
			if tc.bounded {
				k.bounded()
			}
			o := ContainerdOptions{Snapshotter: "tank", Registries: []*Proxy{r.Proxy}, Sandbox: PauseRef,
				Import: k.DropIn()}
			k.Serve()
			n := &twoContainerds{t: t, e: e, k: k, c: e.NewContainerd(o), kept: e.Name("kept")}
			n.image = TestRegistry + "/" + OwnFixture(t).Name
			n.c.Pull(n.image)
			n.c.Ctr(n.c.runArgs(nil, n.image, n.kept, "/usr/bin/hello", "write", "/kept", "kept")...)
			n.works("at first")

			o.Name = "d"
			n.beside(e.NewContainerd(o))
			n.emptyOnce()
			n.moved()
			if !tc.bounded { // the rest does not depend on how the database is found
				n.restored()
				n.wiped()
			}
		})
	}
}

// beside: two containerds that run at once do not see each other's things.
func (n *twoContainerds) beside(other *Containerd) {
	n.collects(other)
	other.Pull(n.image)
	other.RemoveImage(n.image)
	if list := other.Ctr("content", "ls", "-q"); list != "" {
		n.t.Errorf("the other containerd has blobs: %s", list)
	}
	n.works("beside another containerd")
	if r := n.k.Run("release", "containerd"); r.Code != 1 || !strings.Contains(r.Stderr, "connected") {
		n.t.Errorf("released while it runs: %s", r)
	}
	other.Stop()
}

// emptyOnce: containerd starts once with an empty root, as when its disk is not mounted, and removes what it made
// there.
func (n *twoContainerds) emptyOnce() {
	n.c.Stop()
	n.withRoot(filepath.Join(n.c.Dir, "empty"))
	n.collects(n.c)
	n.c.Pull(n.image)
	n.c.RemoveImage(n.image)
	n.c.Stop()
	n.withRoot(filepath.Join(n.c.Dir, "root"))
	n.works("with its root again")
}

// moved: the root is copied to another place, and containerd started there.
func (n *twoContainerds) moved() {
	n.c.Stop()
	to := filepath.Join(n.c.Dir, "moved")
	if out, err := exec.Command("cp", "-a", filepath.Join(n.c.Dir, "root"), to).CombinedOutput(); err != nil {
		n.t.Fatalf("cp: %v: %s", err, out)
	}
	n.withRoot(to)
	n.collects(n.c)
	n.works("with a root that was moved")
	n.k.Daemon().Stop()
	n.k.Serve()
	n.c.AwaitPlugin()
	n.works("with a root that was moved, after a restart of Tank")
}

// restored: the database is restored from a backup, in its place and as a new file.
func (n *twoContainerds) restored() {
	db := database(filepath.Join(n.c.Dir, "moved"))
	n.c.Stop()
	backup, err := os.ReadFile(db)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, how := range []string{"in its place", "as a new file"} {
		n.c.Start()
		n.collects(n.c)
		n.c.Pull(TestRegistry + "/" + CornerFixture(n.t).Name)
		n.c.Stop()
		if how != "in its place" {
			if err := os.Remove(db); err != nil {
				n.t.Fatal(err)
			}
		}
		if err := os.WriteFile(db, backup, 0o644); err != nil {
			n.t.Fatal(err)
		}
		n.c.Start()
		n.works("with a database that was restored " + how)
		n.c.Stop()
	}
}

// wiped: the root is emptied on purpose. Pulls work at once, and what the former containerd keeps is shown and
// released.
func (n *twoContainerds) wiped() {
	if err := os.RemoveAll(filepath.Join(n.c.Dir, "moved")); err != nil {
		n.t.Fatal(err)
	}
	n.c.Start()
	n.c.Pull(n.image)
	if got := n.c.Run(n.image, n.e.Name("new")); got != helloText {
		n.t.Errorf("after the root was wiped: printed %q", got)
	}
	former := n.k.holders()["containerd"]
	if former.Connected || former.Snapshots == 0 || former.Seen.IsZero() ||
		former.Database != database(filepath.Join(n.c.Dir, "moved")) {
		n.t.Errorf("the former containerd: %+v", former)
	}
	for name, h := range n.k.holders() {
		switch r := n.k.Run("release", name); {
		case h.Connected && (r.Code != 1 || !strings.Contains(r.Stderr, "connected")):
			n.t.Errorf("released while it runs: %s", r)
		case !h.Connected && r.Code != 0:
			n.t.Errorf("%s", r)
		}
	}
	if left := n.k.holders(); len(left) != 1 {
		n.t.Errorf("holders: %+v", left)
	}
	if got := n.c.Run(n.image, n.e.Name("new")); got != helloText {
		n.t.Errorf("after the release: printed %q", got)
	}
}
