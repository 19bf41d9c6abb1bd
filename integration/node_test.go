package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// smallImage returns a small image and its tree. Its first layer has the program that prints helloText; each list of
// entries is one layer more.
func smallImage(t testing.TB, layers ...[]Entry) (BuiltImage, []Node) {
	t.Helper()
	hello, err := testProgram()
	if err != nil {
		t.Fatal(err)
	}
	all := append([][]Entry{{
		dir("usr", 0o755), dir("usr/bin", 0o755), file("usr/bin/hello", 0o755, string(hello)),
		dir("proc", 0o555), dir("sys", 0o555), dir("dev", 0o755), dir("etc", 0o755), dir("run", 0o755),
		dir("tmp", 0o1777),
	}}, layers...)
	img, err := BuildImage(all, helloConfig)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := ExpectedTree(all)
	if err != nil {
		t.Fatal(err)
	}
	return img, tree
}

// blobInodes returns the inode number of each blob.
func (k *TankRoot) blobInodes(t testing.TB) map[digest.Digest]uint64 {
	t.Helper()
	inodes := map[digest.Digest]uint64{}
	for d := range blobsOf(t, k.Root) {
		inodes[d] = inodeOf(t, filepath.Join(k.Root, "blobs", "sha256", d.Encoded()))
	}
	return inodes
}

// kept checks that blobs and layers still have their earlier inode numbers; there may be new ones.
func (k *TankRoot) kept(t testing.TB, when string, blobs map[digest.Digest]uint64, layers map[string]uint64) {
	t.Helper()
	now := k.blobInodes(t)
	for d, ino := range blobs {
		if now[d] != ino {
			t.Errorf("%s: blob %s was inode %d and is %d", when, d, ino, now[d])
		}
	}
	inodes := k.LayerInodes(t)
	for p, ino := range layers {
		if inodes[p] != ino {
			t.Errorf("%s: layers/%s was inode %d and is %d", when, p, ino, inodes[p])
			return
		}
	}
}

// checkHello runs a container of the image and checks what it prints.
func (c *Containerd) checkHello(t testing.TB, when, ref string) {
	t.Helper()
	if got := c.Run(ref, c.env.Name("hello")); got != helloText {
		t.Errorf("%s: the container printed %q", when, got)
	}
}

// TestCollector: whatever starts containerd's collector, an image that the CLI pulled stays
// unchanged, and containerd then adopts it without fetching a blob or unpacking a layer.
func TestCollector(t *testing.T) {
	t.Parallel()
	e := New(t)
	k, c, r := e.NewNode()
	img, tree := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")}, []Entry{file("etc/two", 0o644, "two\n")})
	other, _ := smallImage(t, []Entry{file("etc/other", 0o644, "other\n")})
	r.PushBuilt(img, "test/kept:1")
	r.PushBuilt(other, "test/other:1")
	cli, ref, otherRef := r.Ref("test/kept:1"), TestRegistry+"/test/kept:1", TestRegistry+"/test/other:1"
	root := k.Pull(cli)
	blobs, layers := k.blobInodes(t), k.LayerInodes(t)

	for _, step := range []struct {
		name    string
		collect func()
	}{
		{"images rm --sync", func() { c.Pull(otherRef); c.RemoveImage(otherRef) }},
		{"content prune references", func() {
			c.Pull(otherRef)
			c.Ctr("content", "prune", "references")
			c.RemoveImage(otherRef)
		}},
		{"the end of a lease", func() { c.leaveSnapshots(3)() }},
		{"images rm of the image itself", func() { c.Pull(ref); c.RemoveImage(ref) }},
		{"a restart with a collection at once", func() {
			c.Pull(ref)
			c.Ctr("images", "rm", ref)
			c.Stop()
			c.Start()
			c.Pull(otherRef)
			c.RemoveImage(otherRef)
		}},
		{"kill -9 and a collection", func() {
			c.Pull(ref)
			c.Ctr("images", "rm", ref)
			c.Kill9()
			c.Start()
			c.Pull(otherRef)
			c.RemoveImage(otherRef)
		}},
	} {
		step.collect()
		k.MustRun("gc")
		k.kept(t, step.name, blobs, layers)
		if got := k.blobInodes(t); len(got) != len(blobs) {
			t.Errorf("%s: the root has %d blobs, the image %d", step.name, len(got), len(blobs))
		}
		if offline := k.Pull(cli, "--offline"); offline != root {
			t.Errorf("%s: pull --offline returns %s, not %s", step.name, offline, root)
		}
		if out := c.Ctr("content", "ls", "-q"); out != "" {
			t.Errorf("%s: containerd still lists %q", step.name, out)
		}
	}
	CheckTree(t, "the CLI's", tree, root)
	appeared := k.watchStaging(t)
	r.ResetLog()
	c.Pull(ref)
	if gets := r.BlobGets(); len(gets) > 0 {
		t.Errorf("containerd fetched blobs again: %+v", gets)
	}
	if unpacked := unpackedAmong(appeared(), img.Image); len(unpacked) > 0 {
		t.Errorf("unpacked again: %v", unpacked)
	}
	k.kept(t, "adopted", blobs, layers)
	c.checkHello(t, "adopted", ref)
}

// TestNamespaces: two namespaces and the CLI share one copy of an image's blobs and layers under either sharing
// policy of containerd, and each removes the image only for itself.
func TestNamespaces(t *testing.T) {
	for _, policy := range []string{"shared", "isolated"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			r := e.NewRegistry()
			k := e.NewTank()
			dropIn := k.DropIn()
			appendTo(t, dropIn,
				fmt.Sprintf("[plugins.'io.containerd.metadata.v1.bolt']\n  content_sharing_policy = %q\n", policy))
			k.Serve()
			a := e.NewContainerd(ContainerdOptions{Import: dropIn, Snapshotter: "tank", Registries: []*Proxy{r.Proxy}})
			b := a.in(e.Name("b"))
			img, tree := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
			r.PushBuilt(img, "test/both:1")
			cli, ref := r.Ref("test/both:1"), TestRegistry+"/test/both:1"

			a.Pull(ref)
			a.checkHello(t, "first", ref)
			blobs, layers := k.blobInodes(t), k.LayerInodes(t)
			checkPull := func(when string, pull func(), fetched bool) {
				t.Helper()
				appeared := k.watchStaging(t)
				r.ResetLog()
				pull()
				if gets := r.BlobGets(); len(gets) > 0 != fetched {
					t.Errorf("%s: fetched %+v, want %v", when, gets, fetched)
				}
				if more := unpackedAmong(appeared(), img.Image); len(more) > 0 {
					t.Errorf("%s: unpacked again: %v", when, more)
				}
				k.kept(t, when, blobs, layers)
				if now := k.blobInodes(t); len(now) != len(blobs) {
					t.Errorf("%s: %d blobs instead of %d", when, len(now), len(blobs))
				}
			}
			all := map[string]func(){ // each that still has the image uses it
				"namespace a": func() { a.checkHello(t, "namespace a", ref) },
				"namespace b": func() { b.checkHello(t, "namespace b", ref) },
				"the CLI": func() {
					CheckTree(t, "the CLI's", tree, k.Pull(cli, "--offline"))
				},
			}
			remove := func(who string, rm func(), left ...string) {
				t.Helper()
				rm()
				k.MustRun("gc")
				k.kept(t, "after "+who+" removed its own", blobs, layers)
				for _, l := range left {
					all[l]()
				}
			}
			// an isolated namespace fetches the blobs to prove that it may have them
			checkPull("namespace b", func() { b.Pull(ref) }, policy == "isolated")
			all["namespace b"]()
			checkPull("the CLI", func() { k.Pull(cli) }, false)
			remove("namespace a", func() { a.RemoveImage(ref) }, "namespace b", "the CLI")
			checkPull("namespace a", func() { a.Pull(ref) }, policy == "isolated")
			remove("the CLI", func() { k.MustRun("rm", cli) }, "namespace a", "namespace b")
			remove("namespace b", func() { b.RemoveImage(ref) }, "namespace a")
			if out := b.Ctr("content", "ls", "-q"); out != "" {
				t.Errorf("namespace b still lists %q", out)
			}
			a.RemoveImage(ref)
			k.MustRun("gc")
			checkEmpty(t, k)
		})
	}
}

func appendTo(t testing.TB, name, text string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, append(b, text...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func inodeOf(t testing.TB, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return st.Ino
}
