package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// secondInstalls are the ways in which a containerd with its own content store unpacks.
var secondInstalls = map[string]Setup{
	"parallel":   {WithoutContent: true},
	"sequential": {WithoutContent: true, Sequential: true},
	"unlabelled": {WithoutContent: true, NoLabels: true},
}

func eachSecondInstall(t *testing.T, test func(t *testing.T, s Setup)) {
	for _, name := range []string{"parallel", "sequential", "unlabelled"} {
		t.Run(name, func(t *testing.T) { test(t, secondInstalls[name]) })
	}
}

// in is containerd for ctr's commands in another namespace.
func (c *Containerd) in(namespace string) *Containerd {
	other := *c
	other.Namespace = namespace
	return &other
}

// layerGets are the requests for layers of the image since the log was reset.
func layerGets(r *Registry, img Image) (gets []digest.Digest) {
	for _, g := range r.BlobGets() {
		if slices.ContainsFunc(img.Layers, func(l ocispec.Descriptor) bool { return l.Digest == g.Blob() }) {
			gets = append(gets, g.Blob())
		}
	}
	return gets
}

// TestSecondInstall: containerd keeps its own content store. An image mounts as the listed tree and
// runs, its blobs are containerd's alone, a second namespace shares the layers on disk, and each side
// can remove it without the other.
func TestSecondInstall(t *testing.T) {
	eachSecondInstall(t, func(t *testing.T, s Setup) {
		e := New(t)
		k, c, r := e.NewNodeAs(s)
		for _, f := range []Fixture{OwnFixture(t), CornerFixture(t)} {
			r.Push(f.Layout, f.Ref, f.Name)
			c.Pull(TestRegistry + "/" + f.Name)
			dir := c.Mount(TestRegistry + "/" + f.Name)
			CheckTree(t, "ctr images mount of "+f.Name, f.Tree, dir)
			if m := mountOf(t, dir); !strings.Contains(m, filepath.Join(k.Root, "layers")) {
				t.Errorf("mounted as %q, not on %s/layers", m, k.Root)
			}
			c.Unmount(dir)
		}
		f := OwnFixture(t)
		ref := TestRegistry + "/" + f.Name
		if got := c.Run(ref, e.Name("hello")); got != helloText {
			t.Errorf("printed %q", got)
		}
		if blobs, err := os.ReadDir(filepath.Join(k.Root, "blobs", "sha256")); err != nil || len(blobs) > 0 {
			t.Errorf("the root has %d blobs, %v", len(blobs), err)
		}

		other := c.in(e.Name("other"))
		before, appeared := k.LayerInodes(t), k.watchStaging(t)
		r.ResetLog()
		other.Pull(ref)
		if gets := layerGets(r, f.Image); len(gets) > 0 {
			t.Errorf("the second namespace fetched %v", gets)
		}
		if again := unpackedAmong(appeared(), f.Image); len(again) > 0 {
			t.Errorf("the second namespace unpacked again: %v", again)
		}
		for p, inode := range k.LayerInodes(t) {
			if was, here := before[p]; here && was != inode {
				t.Errorf("layers/%s was inode %d and is %d", p, was, inode)
			}
		}
		c.RemoveImage(ref)
		if got := other.Run(ref, e.Name("hello")); got != helloText {
			t.Errorf("after the first namespace removed it: printed %q", got)
		}
		k.MustRun("check")
		other.RemoveImage(ref)
		c.RemoveImage(TestRegistry + "/" + CornerFixture(t).Name)
		checkEmpty(t, k)
	})
}

// TestSecondInstallAfterCLI: what the CLI pulled is not unpacked again, and containerd's image is complete. With
// skip_known_blobs its layers are not even fetched. The CLI's image stays when containerd removes its own.
func TestSecondInstallAfterCLI(t *testing.T) {
	eachSecondInstall(t, func(t *testing.T, s Setup) {
		s.SkipKnown = s.Sequential
		e := New(t)
		k, c, r := e.NewNodeAs(s)
		f := OwnFixture(t)
		r.Push(f.Layout, f.Ref, f.Name)
		ref := TestRegistry + "/" + f.Name
		rootfs := k.Pull(r.Ref(f.Name))
		appeared := k.watchStaging(t)
		r.ResetLog()
		c.Pull(ref)
		if again := unpackedAmong(appeared(), f.Image); len(again) > 0 {
			t.Errorf("unpacked again: %v", again)
		}
		if gets := layerGets(r, f.Image); s.SkipKnown && len(gets) > 0 {
			t.Errorf("fetched again: %v", gets)
		}
		dir := c.Mount(ref)
		CheckTree(t, "ctr images mount", f.Tree, dir)
		c.Unmount(dir)
		if got := c.Run(ref, e.Name("hello")); got != helloText {
			t.Errorf("printed %q", got)
		}
		if s.SkipKnown { // what was not fetched, for an export
			c.Ctr("content", "fetch", "--hosts-dir", filepath.Join(c.Dir, "hosts"), ref)
		}
		c.Ctr("images", "export", e.Path("exported.tar"), ref)
		c.RemoveImage(ref)
		k.MustRun("gc")
		CheckTree(t, "the CLI's image after containerd's was removed", f.Tree, rootfs)
		k.MustRun("pull", "--offline", "--progress", "none", r.Ref(f.Name))
	})
}

// TestSecondInstallComesAndGoes: either of the two may be away or start again. Tank starts and answers
// its commands without containerd, and after a restart of one of them pulls work at once.
func TestSecondInstallComesAndGoes(t *testing.T) {
	e := New(t)
	k, c, r := e.NewNodeAs(Setup{WithoutContent: true}) // Tank starts first
	own, corner := OwnFixture(t), CornerFixture(t)
	for _, f := range []Fixture{own, corner} {
		r.Push(f.Layout, f.Ref, f.Name)
	}
	c.Pull(TestRegistry + "/" + own.Name)

	c.Kill9()
	commands := func(when string) {
		t.Helper()
		for _, args := range [][]string{{"images"}, {"gc"}, {"check"},
			{"pull", "--no-rootfs", "--progress", "none", r.Ref(corner.Name)}} {
			start := time.Now()
			k.MustRun(args[0], args[1:]...)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("%s: %s took %v", when, args[0], took)
			}
		}
	}
	commands("containerd is down")
	k.Daemon().Stop()
	k.Serve()
	commands("Tank started without containerd")
	k.MustRun("rm", r.Ref(corner.Name))
	k.MustRun("gc")

	c.Start()
	c.Pull(TestRegistry + "/" + corner.Name)
	for _, kill := range []func(){k.Daemon().Stop, func() { k.Daemon().Kill9() }} {
		c.RemoveImage(TestRegistry + "/" + corner.Name)
		kill()
		k.Serve()
		c.AwaitPlugin()
		c.Pull(TestRegistry + "/" + corner.Name)
	}
	for _, f := range []Fixture{own, corner} {
		dir := c.Mount(TestRegistry + "/" + f.Name)
		CheckTree(t, f.Name, f.Tree, dir)
		c.Unmount(dir)
	}
}

// TestSecondInstallKilled: kill -9 of the daemon in the middle of a pull, and of containerd, then a retry.
func TestSecondInstallKilled(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		for _, whose := range []string{"tank", "containerd"} {
			t.Run(whose, func(t *testing.T) {
				e := New(t)
				k, c, r := e.NewNodeAs(Setup{WithoutContent: true})
				r.Push(f.Layout, f.Ref, f.Name)
				ref := TestRegistry + "/" + f.Name
				pull := startSlowly(t, r, f.Image, func() *Process { return c.StartPull(ref) })
				if whose == "tank" {
					k.Daemon().Kill9()
				} else {
					c.Kill9()
				}
				r.SetRate(0)
				if code, err := pull.Wait(time.Minute); err != nil || code == 0 {
					t.Errorf("the pull: exit %d, %v", code, err)
				}
				if whose == "tank" {
					k.Serve()
					c.AwaitPlugin()
				} else {
					c.Start()
				}
				c.Pull(ref)
				dir := c.Mount(ref)
				CheckTree(t, "after the retry", f.Tree, dir)
				c.Unmount(dir)
				k.MustRun("check")
			})
		}
	})
}

// TestSecondInstallRepairs: a layer that did not reach the disk before a crash is unpacked again from
// containerd's blob, in the background when Tank starts, or when containerd is there again and somebody
// wants the layer.
func TestSecondInstallRepairs(t *testing.T) {
	e := New(t)
	k, c, r := e.NewNodeAs(Setup{WithoutContent: true})
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := TestRegistry + "/" + f.Name
	c.Pull(ref)
	damage := func() {
		t.Helper()
		k.Daemon().Stop()
		found, err := filepath.Glob(filepath.Join(k.Root, "layers", "[^.]*", "fs", "a", "b", "d"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no layer has a/b/d: %v", err)
		}
		flipByte(t, found[0])
		makeProvisional(t, k.Root)
		if res := k.Run("check"); res.Code != 6 {
			t.Errorf("check of a damaged layer: %s", res)
		}
	}
	damage()
	k.Serve()
	Eventually(t, 30*time.Second, "the layer is unpacked again", func() bool { return k.Run("check").Code == 0 })

	damage()
	c.Kill9()
	k.Serve()
	if res := k.Run("check"); res.Code != 6 {
		t.Errorf("without containerd: %s", res)
	}
	c.Start()
	dir := c.Mount(ref)
	CheckTree(t, "after the repair", f.Tree, dir)
	c.Unmount(dir)
	k.MustRun("check")
}

// makeProvisional takes from the layers of a root that nobody has open the record that they reached the disk.
func makeProvisional(t *testing.T, root string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &bolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		layers := tx.Bucket([]byte("layers"))
		now := map[string]string{}
		err := layers.ForEach(func(key, record []byte) error {
			now[string(key)] = strings.Replace(string(record), `,"durable":true`, "", 1)
			return nil
		})
		for key, record := range now {
			err = errors.Join(err, layers.Put([]byte(key), []byte(record)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFalseDiffID: a config that claims a diff ID which its blob does not have is refused in every
// install, also when the layer with that diff ID is here, and nothing that can be used is left of it.
func TestFalseDiffID(t *testing.T) {
	for name, s := range map[string]Setup{
		"full": {}, "full sequential": {Sequential: true}, "second": {WithoutContent: true},
		"second sequential": {WithoutContent: true, Sequential: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := New(t)
			k, c, r := e.NewNodeAs(s)
			good := gzipLayer(t, file("etc/motd", 0o644, "good\n"))
			evil := gzipLayer(t, file("etc/motd", 0o644, "evil\n"))
			r.PushBuilt(rawImage(t, blobLayer{evil.blob, good.diffID}), "test/liar:1")
			liar := TestRegistry + "/test/liar:1"
			above := TestRegistry + "/test/liar:2"
			r.PushBuilt(rawImage(t, gzipLayer(t, file("base", 0o644, "base\n")), blobLayer{evil.blob, good.diffID}),
				"test/liar:2")
			refuse := func(when string, c *Containerd, ref string) {
				t.Helper()
				if res := c.CtrResult(c.pullArgs(ref)...); res.Code == 0 ||
					!strings.Contains(res.Stderr, "wrong diff id") {
					t.Errorf("%s: %s", when, res)
				}
			}
			refuse("unknown", c, liar)
			r.PushBuilt(rawImage(t, good), "test/good:1")
			c.Pull(TestRegistry + "/test/good:1")
			refuse("known, at another place", c, above)
			refuse("known, once more", c, above)
			// in this one containerd has the chain, and asks nobody
			refuse("known, in another namespace", c.in(e.Name("other")), liar)
			dir := c.Mount(TestRegistry + "/test/good:1")
			if b, err := os.ReadFile(filepath.Join(dir, "etc/motd")); err != nil || string(b) != "good\n" {
				t.Errorf("the good image has %q, %v", b, err)
			}
			c.Unmount(dir)
			k.MustRun("check")
		})
	}
}

// activeIngests are the refs that ctr lists as being written, with their sizes.
func (c *Containerd) activeIngests() map[string]string {
	c.env.t.Helper()
	active := map[string]string{}
	for i, line := range strings.Split(c.Ctr("content", "active"), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) >= 3 {
			active[f[0]] = f[1] + f[2]
		}
	}
	return active
}

// TestPullProgress: while an image is pulled, containerd shows each layer's ingest with its growing
// size, whoever keeps the content.
func TestPullProgress(t *testing.T) {
	for name, s := range map[string]Setup{"full": {}, "second": {WithoutContent: true}} {
		t.Run(name, func(t *testing.T) {
			e := New(t)
			_, c, r := e.NewNodeAs(s)
			img := rawImage(t, gzipLayer(t, file("noise", 0o644, random(1, 5<<20))))
			r.PushBuilt(img, "test/big:1")
			layer := img.Layers[0]
			listed := func() string {
				for ref, size := range c.activeIngests() {
					if strings.Contains(ref, layer.Digest.String()) {
						return size
					}
				}
				return ""
			}
			r.Hold(layer.Digest, 2<<20)
			pull := c.StartPull(TestRegistry + "/test/big:1")
			first := ""
			Eventually(t, 30*time.Second, "the ingest shows with a part of its bytes", func() bool {
				first = listed()
				return first != "" && !strings.HasPrefix(first, "0B") && !strings.HasPrefix(first, "0.0")
			})
			r.Release(layer.Digest)
			r.Hold(layer.Digest, 4<<20)
			Eventually(t, 30*time.Second, "the ingest grows",
				func() bool { now := listed(); return now != "" && now != first })
			r.Release(layer.Digest)
			if code, err := pull.Wait(time.Minute); err != nil || code != 0 {
				t.Errorf("the pull: exit %d, %v: %s", code, err, tail(pull.Log, 2000))
			}
			if out := fmt.Sprint(c.activeIngests()); strings.Contains(out, layer.Digest.String()) {
				t.Errorf("after the pull: %s", out)
			}
		})
	}
}
