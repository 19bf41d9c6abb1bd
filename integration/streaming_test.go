package integration

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestUnpackWhileDownloading: the registry keeps the end of each layer's blob until the layer's unpack
// has begun, so a pull that waits for whole blobs never ends.
func TestUnpackWhileDownloading(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		t.Run("alone", func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			r.HoldLayers(f.Image)
			k := e.NewTank()
			pull := k.StartPull(r.Ref(f.Name))
			releaseAsUnpacked(t, k, r, f.Image, pull, 2*heldTail)
			CheckTree(t, "pull", f.Tree, k.Pull(r.Ref(f.Name), "--offline"))
		})
		t.Run("containerd", func(t *testing.T) {
			e := New(t)
			k, c, r := e.NewNode()
			r.Push(f.Layout, f.Ref, f.Name)
			r.HoldLayers(f.Image)
			ref := TestRegistry + "/" + f.Name
			pull := c.StartPull(ref)
			releaseAsUnpacked(t, k, r, f.Image, pull, 1<<20+heldTail)
			dir := c.Mount(ref)
			CheckTree(t, "ctr images mount", f.Tree, dir)
			c.Unmount(dir)
		})
	})
}

// releaseAsUnpacked releases the rest of each layer's blob as soon as it sees that the layer's unpack has begun, and
// waits for the end of the pull. containerd fetches three layers at a time, so it requests the others only after
// these were released. The unpack of a layer has begun when its directory exists; if its blob has at least big bytes,
// Tank has received some of it, and a file has to exist as well.
func releaseAsUnpacked(t *testing.T, k *TankRoot, r *Registry, img Image, pull *Process, big int64) {
	t.Helper()
	pending := map[digest.Digest]int{}
	for i, d := range img.DiffIDs {
		pending[d] = i
	}
	const patience = 30 * time.Second // to wait for the next layer; a loaded machine is slow
	deadline := time.Now().Add(patience)
	for len(pending) > 0 {
		for d, i := range pending {
			if k.unpackBegan(d, img.Layers[i].Size >= big) {
				r.Release(img.Layers[i].Digest)
				delete(pending, d)
				deadline = time.Now().Add(patience)
			}
		}
		switch {
		case len(pending) == 0:
		case !pull.Running():
			t.Fatalf("the pull ended, but the test did not see the unpack of %d layers begin: %s", len(pending),
				tail(pull.Log, 4000))
		case time.Now().After(deadline):
			for d, i := range pending {
				t.Errorf("layer %d (diff ID %s, %d bytes): not unpacked while its blob %s was incomplete (held at "+
					"its end: %v)",
					i, d, img.Layers[i].Size, img.Layers[i].Digest, r.Reached(img.Layers[i].Digest))
			}
			t.FailNow()
		}
		time.Sleep(time.Millisecond)
	}
	if code, err := pull.Wait(time.Minute); err != nil || code != 0 {
		t.Fatalf("pull: exit %d, %v: %s", code, err, tail(pull.Log, 4000))
	}
}
