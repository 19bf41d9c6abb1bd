package snapshot_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestDirtyHoles copies sparse files right after they were unpacked, with every operation that copies. The file system
// reports data that is not yet on the disk as a hole. A copy that trusts such a hole has zeros in place of the data.
func TestDirtyHoles(t *testing.T) {
	requireMounts(t)
	x := string(bytes.Repeat([]byte("x"), 100_000))
	files := map[string]struct {
		size   int64
		pieces []Piece
	}{
		"begins": {300_000, []Piece{{At: 200_000, Data: x}}},
		"large":  {64 << 20, []Piece{{At: 4096, Data: x}, {At: 32<<20 + 5, Data: x}}},
	}
	dir := loopFSAs(t, "ext4", 512<<20, "mkfs.ext3", "-q")
	w := openDirectory(t, dir, memory{})
	lists := [][]Item{{F("other", "1"), H("link", "begins")}} // a hard link to a lower file, which a fix-up copies
	var layers []layer.Pair
	for name, f := range files {
		layers = append(layers, w.blobs.add(t, SparseTar(name, f.size, f.pieces...)))
	}
	for _, items := range lists {
		layers = append(layers, w.blobs.add(t, Tar(t, items...)))
	}
	var recs []metadata.Layer
	for _, l := range layers {
		rec, err := w.Layers().Unpack(ctx, holder, l)
		must(t, err)
		recs = append(recs, rec)
	}
	rootfs, err := w.Layers().Assemble(ctx, holder, digest.FromString("m"), recs, &layer.AssembleOptions{NoSync: true})
	must(t, err)
	clone := filepath.Join(dir, "clone")
	must(t, snapshot.Clone(ctx, rootfs, clone))
	container, err := userPrepared(t, w.Store, layers)
	must(t, err)
	for way, tree := range map[string]string{"rootfs": rootfs, "clone": clone, "container": container} {
		for name, f := range files {
			want := make([]byte, f.size)
			for _, p := range f.pieces {
				copy(want[p.At:], p.Data)
			}
			got, err := os.ReadFile(filepath.Join(tree, name))
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %s differs from the layer's file", way, name)
			}
		}
	}
	must(t, w.Check(ctx, func(err metadata.Fault) { t.Error(err) }))
}
