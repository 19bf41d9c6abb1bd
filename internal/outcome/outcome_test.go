package outcome_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/internal/outcome"
)

// TestCommit: an error before the commit is certain, one after it is not, and no writer is blocked
// afterwards.
func TestCommit(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	failed := errors.New("the disk failed")
	for _, tc := range []struct {
		name      string
		commit    func(tx *bolt.Tx) error
		want      error
		uncertain bool
		written   bool
	}{
		{"done", (*bolt.Tx).Commit, nil, false, true},
		{"failed before", func(*bolt.Tx) error { return failed }, failed, false, false},
		{"failed after", func(tx *bolt.Tx) error { return errors.Join(tx.Commit(), failed) }, failed, true, true},
	} {
		tx, err := db.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.CreateBucket([]byte(tc.name)); err != nil {
			t.Fatal(err)
		}
		err = outcome.Commit(tx, func() error { return tc.commit(tx) }, db.View)
		if !errors.Is(err, tc.want) || outcome.Uncertain(fmt.Errorf("commit: %w", err)) != tc.uncertain {
			t.Errorf("%s: %v, uncertain %v", tc.name, err, outcome.Uncertain(err))
		}
		_ = db.View(func(tx *bolt.Tx) error {
			if written := tx.Bucket([]byte(tc.name)) != nil; written != tc.written {
				t.Errorf("%s: the change is there: %v", tc.name, written)
			}
			return nil
		})
	}
}
