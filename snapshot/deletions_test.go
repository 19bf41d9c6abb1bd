package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
)

// TestManyDeletions: while very many directories wait to be deleted, making one takes a moment
// longer and removing one does not. A sweep that is interrupted forgets none of them, and the next
// one tries again to delete what could not be deleted.
func TestManyDeletions(t *testing.T) {
	ctx := t.Context()
	db, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := Open(t.TempDir(), db, nil, &Options{SyncDelay: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// As many trees as the background deletes at once are so large that it deletes nothing else.
	const workers, manyDeletions, deletionPause = 4, 1024, 100 * time.Millisecond
	large, faulty := make(chan struct{}), atomic.Bool{}
	s.dir.Close()
	s.dir, err = rootdir.Open(s.root, db, &rootdir.Options{
		Pools: pools, Remove: func(ctx context.Context, path string, freed func(int64)) error {
			if strings.Contains(path, ".large") {
				<-large
			}
			if faulty.Swap(false) {
				return errdefs.ErrUnknown
			}
			return nodes.RemoveAll(ctx, path, freed)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() { close(large) })
	defer release()
	for range workers {
		path := s.dir.Stage(rootdir.Layers, "large")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		s.dir.Delete(path)
	}
	sn := s.For(metadata.Containerd)
	staged := func(want int, when string) {
		t.Helper()
		if names, err := filepath.Glob(s.path("layers", ".trash*")); err != nil || len(names) != want {
			t.Errorf("%d trees are to be deleted %s, not %d: %v", len(names), when, want, err)
		}
	}
	prepared := func(key string) time.Duration {
		begin := time.Now()
		if _, err := sn.Prepare(ctx, key, ""); err != nil {
			t.Fatal(err)
		}
		return time.Since(begin)
	}
	var all []string
	for n := range manyDeletions {
		all = append(all, makeTree(t, s, n))
	}
	if err := s.dir.Trash(all...); err != nil {
		t.Fatal(err)
	}
	staged(manyDeletions, "after removals")
	if d := prepared("a"); d < deletionPause {
		t.Errorf("Prepare waited for %v while %d trees are to be deleted", d, manyDeletions)
	}
	cut, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Sweep(cut); !errors.Is(err, context.Canceled) {
		t.Errorf("a sweep cut short: %v", err)
	}
	staged(manyDeletions, "after it")
	time.AfterFunc(10*time.Millisecond, release) // the sweep deletes the rest itself, and then waits for the background
	if _, err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	staged(0, "after a sweep")
	if err := s.dir.Trash(makeTree(t, s, 0)); err != nil {
		t.Fatal(err)
	}
	s.dir.Wait()
	staged(0, "by the background")
	faulty.Store(true)
	if err := s.dir.Trash(makeTree(t, s, 1)); err != nil {
		t.Fatal(err)
	}
	s.dir.Wait()
	staged(1, "after a deletion that failed")
	if _, err := s.Sweep(ctx); err != nil {
		t.Error(err)
	}
	staged(0, "after the next sweep")
}

func makeTree(t *testing.T, s *Store, n int) string {
	t.Helper()
	dir := s.path("layers", fmt.Sprint("gone-", n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
