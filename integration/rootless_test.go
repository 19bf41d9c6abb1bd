package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// oneID is a namespace of `unshare --user --map-root-user`.
var oneID = []idRange{{0, ordinary, 1}}

// newRootlessNode is NewNode inside a user namespace.
func newRootlessNode(e *Env) (*Namespace, *TankRoot, *Containerd, *Registry) {
	e.t.Helper()
	return newRootlessNodeAs(e, subordinate, Setup{})
}

// newRootlessNodeAs is NewNodeAs inside a user namespace. Nobody there may make cgroups on this machine.
func newRootlessNodeAs(e *Env, ids []idRange, s Setup) (*Namespace, *TankRoot, *Containerd, *Registry) {
	e.t.Helper()
	r := e.NewRegistry()
	n := e.NewNamespace(ids)
	n.EnterContainerd()
	k := n.NewTank()
	o := ContainerdOptions{Snapshotter: "tank", Registries: []*Proxy{r.Proxy}}
	var flags []string
	if s.WithoutContent {
		k.Config += fmt.Sprintf("containerd_address = %q\n", e.containerdSocket(o))
		flags = append(flags, "--without-content")
	}
	if s.Directory {
		k.Config += directoryMode
	}
	o.Import = k.DropIn(flags...)
	k.Serve()
	c := e.NewContainerd(o)
	c.runFlags = []string{"--cgroup", "", "--cpu-shares", "0"}
	return n, k, c, r
}

// expect returns a listed tree as it must look from inside the namespace.
func (n *Namespace) expect(nodes []Node) []Node {
	if len(n.ids) == 1 {
		return asOrdinary(nodes, 0)
	}
	return withoutDevices(nodes)
}

// checkTree is CheckTree from inside the namespace.
func (n *Namespace) checkTree(t *testing.T, what string, listed []Node, dir string) {
	t.Helper()
	want := n.expect(listed)
	got, err := n.Tree(dir)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if diffs := CompareTrees(want, got, 20); len(diffs) > 0 {
		t.Errorf("%s: %d entries wanted, %d found; differs from the listed tree:\n%s", what, len(want), len(got),
			strings.Join(diffs, "\n"))
	}
}

// mountOf is the line of /proc/mounts about a mount point inside the namespace.
func (n *Namespace) mountOf(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", n.holder.Pid()))
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

// TestRootless: a containerd with Tank inside a user namespace pulls, mounts and runs an image, and
// leaves nothing behind.
func TestRootless(t *testing.T) {
	for _, row := range []struct {
		name    string
		fixture func(testing.TB) Fixture
		ids     []idRange
		setup   Setup
		runs    bool
	}{
		{"own", OwnFixture, subordinate, Setup{}, true},
		{"own without content", OwnFixture, subordinate, Setup{WithoutContent: true}, true},
		{"own as directories", OwnFixture, subordinate, Setup{Directory: true}, true},
		{"own with one id", OwnFixture, oneID, Setup{}, false}, // a container's /dev/pts wants a second one
		{"corner", CornerFixture, subordinate, Setup{}, false},
		{"debian-python", DebianFixture, subordinate, Setup{}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := row.fixture(t)
			e := New(t)
			n, k, c, r := newRootlessNodeAs(e, row.ids, row.setup)
			r.Push(f.Layout, f.Ref, f.Name)
			ref := TestRegistry + "/" + f.Name
			c.Pull(ref)
			dir := c.Mount(ref)
			n.checkTree(t, "ctr images mount", f.Tree, dir)
			overlay := strings.Contains(n.mountOf(t, dir), "userxattr") &&
				strings.Contains(n.mountOf(t, dir), filepath.Join(k.Root, "layers"))
			if overlay == row.setup.Directory {
				t.Errorf("mounted as %q; with userxattr on %s/layers: %v", n.mountOf(t, dir), k.Root, overlay)
			}
			c.Unmount(dir)
			if row.runs {
				if out := c.Run(ref, e.Name("hello"), f.Command...); out != helloText {
					t.Errorf("printed %q", out)
				}
			}
			k.MustRun("check")
			c.RemoveImage(ref)
			checkEmpty(t, k)
		})
	}
}

// TestRootlessRestart: in a user namespace, too, containers do not notice that the daemon is gone, and
// it comes back without network to what it had.
func TestRootlessRestart(t *testing.T) {
	f := OwnFixture(t)
	e := New(t)
	_, k, c, r := newRootlessNode(e)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := TestRegistry + "/" + f.Name
	c.Pull(ref)
	id := e.Name("count")
	pid, _ := c.RunDetached(ref, id, "/usr/bin/hello", "count", "/counter")
	counted := func() int64 {
		st, err := os.Stat(fmt.Sprintf("/proc/%d/root/counter", pid))
		if err != nil {
			return 0
		}
		return st.Size()
	}
	goesOn := func() {
		t.Helper()
		before := counted()
		Eventually(t, 20*time.Second, "the container counts", func() bool { return counted() > before })
	}
	goesOn()
	k.Daemon().Kill9()
	r.Stop()
	goesOn()
	k.Serve()
	c.AwaitPlugin()
	goesOn()
	if out := c.Run(ref, e.Name("hello")); out != helloText {
		t.Errorf("after the restart a new container printed %q", out)
	}
	endContainer(t, c, id)
	k.MustRun("check")
	c.RemoveImage(ref)
	checkEmpty(t, k)
}

// TestRootlessWrites: a container removes, replaces and renames what its image has, and leaves
// directories that nobody may enter. All of it can be removed again, and an image that is made from it,
// as by nerdctl commit, shows the same.
func TestRootlessWrites(t *testing.T) {
	f := DebianFixture(t)
	e := New(t)
	n, k, c, r := newRootlessNode(e)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := TestRegistry + "/" + f.Name
	c.Pull(ref)
	const script = `set -e
rm -r /usr/share/doc /etc/apt
mv /usr/share/zoneinfo /zones || cp -a /usr/share/zoneinfo /zones
mkdir -p /odd/in/side && touch /odd/in/side/file && chown -R 1000:65000 /odd/in && chmod 0 /odd/in/side/file /odd/in/side && chmod 111 /odd/in && chmod 0 /odd
mkdir /etc/apt && echo new >/etc/apt/new && chmod 4755 /etc/apt/new
test ! -e /usr/share/doc && test "$(ls /etc/apt)" = new
sleep 1000`
	id := e.Name("writes")
	pid, log := c.RunDetached(ref, id, "/bin/sh", "-c", script)
	Eventually(t, 30*time.Second, "the container has written", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc/apt/new", pid))
		return err == nil && modeOf("/odd", pid) == 0
	})
	if b := tail(log, 1000); len(b) > 0 {
		t.Errorf("the container printed %s", b)
	}
	dir := c.Mount(ref) // is as before
	n.checkTree(t, "ctr images mount", f.Tree, dir)
	c.Unmount(dir)
	k.MustRun("check")

	made := TestRegistry + "/test/made:1"
	t.Run("commit", func(t *testing.T) {
		e.Use(t)
		m := newCommitter(t, c)
		base, err := m.client.GetImage(m.ctx, ref)
		m.must(err)
		layer, diffID := m.diff(id)
		m.commit(made, base, layer, diffID)
		dir := c.Mount(made)
		got, err := n.Tree(dir)
		m.must(err)
		if diffs := CompareTrees(n.seen(m.tree(id)), got, 20); len(diffs) > 0 {
			t.Errorf("the container's image is not what the container saw:\n%s", strings.Join(diffs, "\n"))
		}
		c.Unmount(dir)
		k.MustRun("check")
	})
	endContainer(t, c, id)
	c.RemoveImage(made)
	c.RemoveImage(ref)
	checkEmpty(t, k)
}

// endContainer is RemoveContainer for one without a cgroup: runc can't kill all that is in it, as
// containerd would have it.
func endContainer(t *testing.T, c *Containerd, id string) {
	t.Helper()
	c.Ctr("tasks", "kill", "--signal", "KILL", id)
	Eventually(t, 30*time.Second, "the container has ended", func() bool {
		return c.CtrResult("tasks", "rm", id).Code == 0
	})
	c.Ctr("containers", "rm", id)
}

// modeOf is the mode of a directory in a container.
func modeOf(dir string, pid int) os.FileMode {
	st, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", pid, dir))
	if err != nil {
		return 0o777
	}
	return st.Mode().Perm()
}

// TestRootlessRemapped: containerd finds no "remap-ids" in the printed drop-in, and changes the owners
// for a container in a user namespace of its own.
func TestRootlessRemapped(t *testing.T) {
	f := OwnFixture(t)
	e := New(t)
	_, k, c, r := newRootlessNode(e)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := TestRegistry + "/" + f.Name
	c.Pull(ref)
	out := c.Ctr(
		c.runArgs([]string{"--rm", "--uidmap", "0:1000:60000", "--gidmap", "0:1000:60000"}, ref, e.Name("remapped"))...)
	if out != helloText {
		t.Errorf("printed %q", out)
	}
	k.MustRun("check")
}

// TestRootlessDropIn: what `config containerd` prints depends on where it runs.
func TestRootlessDropIn(t *testing.T) {
	capabilities := regexp.MustCompile(`(?m)^ *capabilities = .*$`)
	printed := func(k *TankRoot) string {
		b, err := os.ReadFile(k.DropIn())
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(capabilities.FindString(string(b)))
	}
	e := New(t)
	if got := printed(e.NewTank()); got != `capabilities = ["rebase", "remap-ids"]` {
		t.Errorf("as root: %s", got)
	}
	for _, ids := range [][]idRange{subordinate, oneID} {
		if got := printed(e.NewNamespace(ids).NewTank()); got != `capabilities = []` {
			t.Errorf("in a user namespace of %d ranges: %s", len(ids), got)
		}
	}
}

// TestRootlessAlone: without a daemon, files keep their owners where the namespace has ids for them;
// with one id all belong to it. The root is found whole, repaired and rebuilt there, and refused
// elsewhere.
func TestRootlessAlone(t *testing.T) {
	for _, ids := range []struct {
		name string
		ids  []idRange
	}{{"subordinate", subordinate}, {"one-id", oneID}} {
		for _, fixture := range []func(testing.TB) Fixture{OwnFixture, CornerFixture} {
			f := fixture(t)
			t.Run(ids.name+"/"+f.Ref, func(t *testing.T) {
				e := New(t)
				r := e.NewRegistry()
				r.Push(f.Layout, f.Ref, f.Name)
				n := e.NewNamespace(ids.ids)
				k := n.NewTank()
				rootfs := k.Pull(r.Ref(f.Name))
				n.checkTree(t, "pull", f.Tree, rootfs)
				k.MustRun("pull", "--to", e.Path("to"), "--progress", "none", r.Ref(f.Name))
				n.checkTree(t, "pull --to", f.Tree, e.Path("to"))

				checkRefusedToRoot(t, k, n)
				if err := errors.Join(os.Remove(filepath.Join(rootfs, "a/b/d")),
					os.Chmod(filepath.Join(rootfs, "usr/bin"), 0)); err != nil {
					t.Fatal(err)
				}
				if res := k.Run("check"); res.Code == 0 || !strings.Contains(res.Stdout+res.Stderr, "a/b/d") {
					t.Errorf("the damage is not found: %s", res)
				}
				n.checkTree(t, "repaired", f.Tree, k.Pull(r.Ref(f.Name), "--refresh"))
				k.MustRun("check")
				if err := os.Remove(filepath.Join(k.Root, "metadata.db")); err != nil {
					t.Fatal(err)
				}
				k.MustRun("check", "--rebuild")
				checkRefusedToRoot(t, k, n)
				r.Stop()
				n.checkTree(t, "rebuilt", f.Tree, k.Pull(r.Ref(f.Name), "--offline"))
				k.MustRun("check")
			})
		}
	}
}

// checkRefusedToRoot: Tank refuses the root to the machine's root user, and the error names the owner.
func checkRefusedToRoot(t *testing.T, k *TankRoot, n *Namespace) {
	t.Helper()
	bin, err := Tank()
	if err != nil {
		t.Fatal(err)
	}
	want := "made by root of a user namespace, uids 0:65534:1,1:100000:65536"
	if len(n.ids) == 1 {
		want = "made by the one user of a user namespace, uids 0:65534:1"
	}
	for _, args := range [][]string{{"check"}, {"check", "--rebuild"}, {"pull", "--offline", "alpine"}} {
		res := k.env.Run(append([]string{bin, args[0], "--root", k.Root}, args[1:]...)...)
		if res.Code == 0 || !strings.Contains(res.Stderr, want) ||
			!strings.Contains(res.Stderr, "this process is privileged") {
			t.Errorf("want %q: %s", want, res)
		}
	}
}

// TestRootlessUnmappedIDs: an id that the namespace lacks is named, with the path and what to do.
func TestRootlessUnmappedIDs(t *testing.T) {
	img, err := BuildImage([][]Entry{{dir("d", 0o755), file("d/f", 0o644, "1", owner(70000, 0))}}, helloConfig)
	if err != nil {
		t.Fatal(err)
	}
	layout := t.TempDir()
	if err := WriteLayout(layout, map[string]BuiltImage{"unmapped:1": img}); err != nil {
		t.Fatal(err)
	}
	const want = `tar entry "d/f": uid 70000 has no place in this user namespace, ` +
		`which maps 0:65534:1,1:100000:65536 (give its user more ids in /etc/subuid)`
	t.Run("alone", func(t *testing.T) {
		e := New(t)
		r := e.NewRegistry()
		r.Push(layout, "unmapped:1", "test/unmapped:1")
		k := e.NewNamespace(subordinate).NewTank()
		if res := k.Run("pull", "--progress", "none", r.Ref("test/unmapped:1")); res.Code == 0 ||
			!strings.Contains(res.Stderr, want) {
			t.Errorf("want %q: %s", want, res)
		}
		for _, left := range k.Leftovers() { // the blobs are kept for another try
			if !strings.HasPrefix(left, "blobs/") {
				t.Errorf("left: %s", left)
			}
		}
	})
	t.Run("containerd", func(t *testing.T) {
		e := New(t)
		_, k, c, r := newRootlessNode(e)
		r.Push(layout, "unmapped:1", "test/unmapped:1")
		if res := c.CtrResult(c.pullArgs(TestRegistry + "/test/unmapped:1")...); res.Code == 0 ||
			!strings.Contains(strings.ReplaceAll(res.Stderr, `\"`, `"`), want) {
			t.Errorf("want %q: %s", want, res)
		}
		k.MustRun("check")
	})
}
