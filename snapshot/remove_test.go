package snapshot_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestRemoveTogether concurrently removes snapshots that exist and one that does not. If a removal fails, the database
// repeats the other removals of its batch, which the race detector should watch.
func TestRemoveTogether(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	const n = 60
	for i := range n {
		_, err := sn.Prepare(ctx, fmt.Sprint(i), "")
		must(t, err)
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := sn.Remove(ctx, "none"); !errdefs.IsNotFound(err) {
				t.Error(err)
			}
			if err := sn.Remove(ctx, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, sn.Cleanup(ctx))
	w.nothingLeft(t)
}
