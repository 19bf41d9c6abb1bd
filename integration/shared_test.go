package integration

import (
	"testing"
)

// TestBothDoors: what the CLI pulled while the daemon runs is used by containerd as it is, and each
// removes only its own.
func TestBothDoors(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		e := New(t)
		k, c, r := e.NewNode()
		r.Push(f.Layout, f.Ref, f.Name)
		cli, ref := r.Ref(f.Name), TestRegistry+"/"+f.Name

		root := k.Pull(cli)
		CheckTree(t, "pull through the daemon", f.Tree, root)
		adopt := func() {
			t.Helper()
			before, appeared := k.LayerInodes(t), k.watchStaging(t)
			r.ResetLog()
			c.Pull(ref)
			if gets := r.BlobGets(); len(gets) > 0 {
				t.Errorf("containerd fetched blobs again: %+v", gets)
			}
			if again := unpackedAmong(appeared(), f.Image); len(again) > 0 {
				t.Errorf("unpacked again: %v", again)
			}
			after := k.LayerInodes(t)
			for p, ino := range before {
				if after[p] != ino {
					t.Errorf("layers/%s was inode %d and is %d", p, ino, after[p])
				}
			}
			dir := c.Mount(ref)
			CheckTree(t, "ctr images mount", f.Tree, dir)
			c.Unmount(dir)
			if got := c.Run(ref, e.Name("hello")); got != helloText {
				t.Errorf("printed %q", got)
			}
		}
		adopt()

		c.RemoveImage(ref)
		r.Stop()
		if again := k.Pull(cli, "--offline"); again != root {
			t.Errorf("after containerd removed its image, pull --offline gives %s, not %s", again, root)
		}
		CheckTree(t, "the CLI's, after containerd removed its own", f.Tree, root)
		r.Restart()

		adopt()
		k.MustRun("rm", cli)
		k.MustRun("gc")
		if r := k.Run("pull", "--offline", "--progress", "none", cli); r.Code != 3 {
			t.Errorf("after rm, offline: %s", r)
		}
		if got := c.Run(ref, e.Name("hello")); got != helloText {
			t.Errorf("after the CLI removed its own, the container printed %q", got)
		}
		dir := c.Mount(ref)
		CheckTree(t, "containerd's, after the CLI removed its own", f.Tree, dir)
		c.Unmount(dir)
	})
}
