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

// TestManyDeletions shows that, while very many directories wait for deletion, creating a directory
// takes a moment longer and removing one does not. An interrupted sweep forgets none of the waiting
// directories, and the next sweep retries the failed deletions.
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
	// There is one large tree for each background worker. While the workers delete these, they delete nothing else.
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
			t.Errorf("%d trees wait for deletion %s, want %d: %v", len(names), when, want, err)
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
		t.Errorf("Prepare took only %v while %d trees waited for deletion", d, manyDeletions)
	}
	cut, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Sweep(cut); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled sweep: %v", err)
	}
	staged(manyDeletions, "after the canceled sweep")
	time.AfterFunc(10*time.Millisecond, release) // the sweep deletes the rest itself, then waits for the workers
	if _, err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	staged(0, "after a sweep")
	if err := s.dir.Trash(makeTree(t, s, 0)); err != nil {
		t.Fatal(err)
	}
	s.dir.Wait()
	staged(0, "after the background deletion")
	faulty.Store(true)
	if err := s.dir.Trash(makeTree(t, s, 1)); err != nil {
		t.Fatal(err)
	}
	s.dir.Wait()
	staged(1, "after a failed deletion")
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
