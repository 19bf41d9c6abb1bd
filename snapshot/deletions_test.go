package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestManyDeletions: whoever makes directories waits when very many are to be deleted, for a moment; removals never do, nothing that waits is
// forgotten when a sweep is cut short, and what could not be deleted is tried again.
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
	s.deletions.workers = maxDeletions // as if all were at large trees
	sn := s.For(metadata.Containerd)
	staged := func(want int, when string) {
		t.Helper()
		if names, err := filepath.Glob(s.path("layers", ".*")); err != nil || len(names) != want {
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
	if err := s.trash(all...); err != nil {
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
	if _, err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	staged(0, "after a sweep")
	s.deletions.workers = 0 // idle again
	if err := s.trash(makeTree(t, s, 0)); err != nil {
		t.Fatal(err)
	}
	s.wg.Wait()
	staged(0, "by the background")
	if s.deletions.workers != 0 {
		t.Errorf("%d workers", s.deletions.workers)
	}
	s.deletions.failed = map[string]error{makeTree(t, s, 1): errdefs.ErrUnknown}
	if _, err := s.Sweep(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.path("layers", "gone-1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what could not be deleted once is still there: %v", err)
	}
}

func makeTree(t *testing.T, s *Store, n int) string {
	t.Helper()
	dir := s.path("layers", fmt.Sprint("gone-", n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
