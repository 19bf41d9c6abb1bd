package snapshot_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestSweepBesideRemovals shows that a sweep succeeds while removals rename directories
// concurrently: a directory that the sweep found without a record may be gone when the sweep moves
// it.
func TestSweepBesideRemovals(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	stop := make(chan struct{})
	var removed atomic.Int64
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%d-%d", n, i)
				if _, err := sn.Prepare(ctx, key, ""); err != nil {
					t.Error(err)
					return
				}
				if err := sn.Remove(ctx, key); err != nil {
					t.Error(err)
					return
				}
				removed.Add(1)
			}
		}()
	}
	for n := range int64(10) { // each sweep deletes all waiting trees, more than a thousand
		for removed.Load() < 100*n {
			time.Sleep(time.Millisecond)
		}
		if _, err := w.Sweep(ctx); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
}
