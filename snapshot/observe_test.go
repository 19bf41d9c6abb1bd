package snapshot_test

import (
	"testing"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/observe/observetest"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestObserve checks the operations that are reported to an observer: an unpack, a hit on a known layer, a sync, a
// sweep and an unpack that fails.
func TestObserve(t *testing.T) {
	requireRoot(t)
	seen := observetest.New(t)
	root, blobs := t.TempDir(), memory{}
	w := openWith(t, root, blobs, &snapshot.Options{SyncDelay: -1, Observe: seen})
	l := blobs.add(t, Tar(t, F("a", "1"), F("b", "22")))
	for range 2 {
		if _, err := w.Layers().Unpack(ctx, holder, l); err != nil {
			t.Fatal(err)
		}
	}
	unpacks, hits := seen.Ended(observe.Unpack), seen.Ended(observe.Hit)
	if len(unpacks) != 1 || unpacks[0].Subject != l.Blob.Digest.String() || unpacks[0].Source != "blob" ||
		unpacks[0].Result.Bytes == 0 || unpacks[0].Result.Count != 3 || unpacks[0].Result.Err != nil {
		t.Errorf("unpacks %+v", unpacks)
	}
	if len(hits) != 1 || hits[0].Subject != l.DiffID.String() {
		t.Errorf("hits %+v", hits)
	}
	must(t, w.Layers().Sync(ctx))
	if syncs := seen.Ended(observe.Sync); len(syncs) != 1 || syncs[0].Result.Count != 1 {
		t.Errorf("syncs %+v", syncs)
	}
	if _, err := w.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if sweeps := seen.Ended(observe.Sweep); len(sweeps) != 1 || sweeps[0].Subject != "layers" {
		t.Errorf("sweeps %+v", sweeps)
	}
	unknown := layer.Pair{Blob: l.Blob}
	unknown.Blob.Digest = l.DiffID // a digest without a blob
	if _, err := w.Layers().Unpack(ctx, holder, unknown); err == nil {
		t.Error("unpacked a blob that does not exist")
	}
	if unpacks = seen.Ended(observe.Unpack); len(unpacks) != 2 || unpacks[1].Result.Err == nil {
		t.Errorf("unpacks %+v", unpacks)
	}
	if seen.Open() != 0 {
		t.Errorf("%d operations were not reported as ended", seen.Open())
	}
}
