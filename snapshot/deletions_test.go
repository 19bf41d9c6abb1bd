package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestManyDeletions: whoever makes directories deletes others when very many wait, so that nobody can make and remove them faster
// than they are deleted; removals never do, and a sweep takes all.
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
	staged := func() int {
		names, err := os.ReadDir(s.path("staging"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	for n := range 2 * manyDeletions {
		if err := s.trash(makeTree(t, s, n)); err != nil {
			t.Fatal(err)
		}
	}
	if n := staged(); n != 2*manyDeletions {
		t.Errorf("%d trees wait after %d removals", n, 2*manyDeletions)
	}
	for n := range manyDeletions + 100 {
		if _, err := sn.Prepare(ctx, fmt.Sprint(n), ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := staged(); n >= manyDeletions {
		t.Errorf("%d trees wait after %d were made", n, manyDeletions+100)
	}
	if _, err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if n := staged(); n != 0 {
		t.Errorf("%d trees wait after a sweep", n)
	}
	s.deletions.workers = 0
	if err := s.trash(makeTree(t, s, 0)); err != nil {
		t.Fatal(err)
	}
	s.wg.Wait()
	if n, workers := staged(), s.deletions.workers; n != 0 || workers != 0 {
		t.Errorf("%d trees wait in the end, of %d workers", n, workers)
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
