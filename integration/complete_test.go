package integration

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestIsolated: with content_sharing_policy = "isolated" a namespace gets a layer that is unpacked here only from a
// registry that has it, also after its blob was discarded. Then nothing is unpacked again, and the image is complete:
// it can be exported, and another snapshotter can run it.
func TestIsolated(t *testing.T) {
	for name, s := range map[string]Setup{
		"full": {Isolated: true}, "full sequential": {Isolated: true, Sequential: true},
		"second": {Isolated: true, WithoutContent: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			r := e.NewRegistry()
			k, one := e.startNode(s, r)
			two := one.in(e.Name("two"))
			f := OwnFixture(t)
			r.Push(f.Layout, f.Ref, "test/mine:1")
			r.Push(f.Layout, f.Ref, "test/other:1")
			var layers []string
			var blobs []digest.Digest
			for _, l := range distinct(f.Image.Layers) {
				layers, blobs = append(layers, l.Digest.String()), append(blobs, l.Digest)
			}
			one.Pull(TestRegistry + "/test/mine:1")
			one.Ctr(append([]string{"content", "rm"}, layers...)...)

			ref := TestRegistry + "/test/other:1"
			r.Miss("test/other", blobs...)
			if res := two.CtrResult(two.pullArgs(ref)...); res.Code == 0 {
				t.Errorf("pulled without the layers: %s", res)
			}

			r.Miss("")
			appeared := k.watchStaging(t)
			two.Pull(ref)
			if unpacked := unpackedAmong(appeared(), f.Image); len(unpacked) > 0 {
				t.Errorf("unpacked again: %v", unpacked)
			}
			two.checkHello(t, "two", ref)
			two.Ctr("images", "export", e.Path("two.tar"), ref)
			two.Snapshotter = "native"
			two.checkHello(t, "two, another snapshotter", ref)
		})
	}
}
