package metadata_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestSpend makes commits fail on a full disk. After Spend has freed space, the changes of Batch and UpdateDeferred run
// again, with all other changes of their transaction. A change of Update fails.
func TestSpend(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and in CI nothing may skip")
		}
		t.Skip("needs root")
	}
	set := func(name string) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error { return tx.SetFlag(name, strings.Repeat("x", 128<<10)) }
	}
	for name, tc := range map[string]struct {
		room   bool
		change func(db *metadata.DB) error
		want   error
		flags  []string
	}{
		"a batch":      {true, func(db *metadata.DB) error { return db.Batch(set("a")) }, nil, []string{"a"}},
		"without room": {false, func(db *metadata.DB) error { return db.Batch(set("a")) }, unix.ENOSPC, nil},
		"an update":    {true, func(db *metadata.DB) error { return db.Update(set("a")) }, unix.ENOSPC, nil},
		"releases": {true, func(db *metadata.DB) error {
			first, err := db.UpdateDeferred(set("a"))
			if err != nil {
				return err
			}
			second, err := db.UpdateDeferred(set("b"))
			if err != nil {
				return err
			}
			db.Flush()
			return errors.Join(first(), second())
		}, nil, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"))
			defer func() { must(t, unix.Unmount(dir, 0)) }()
			filler := filepath.Join(dir, "filler")
			opts := &metadata.Options{NoSync: true, Spend: func(commit func() error) error {
				err := commit()
				if errors.Is(err, unix.ENOSPC) && tc.room {
					must(t, os.Remove(filler))
					err = commit()
				}
				return err
			}}
			db, err := metadata.Open(filepath.Join(dir, "metadata.db"), opts)
			must(t, err)
			defer func() { must(t, db.Close()) }()
			if err := os.WriteFile(filler, make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("the disk is not full: %v", err)
			}
			if err := tc.change(db); !errors.Is(err, tc.want) {
				t.Errorf("error %v", err)
			}
			must(t, db.View(func(tx *metadata.Tx) error {
				for _, f := range []string{"a", "b"} {
					if got := tx.Flag(f) != ""; got != strings.Contains(strings.Join(tc.flags, ""), f) {
						t.Errorf("flag %s: %v", f, got)
					}
				}
				return nil
			}))
		})
	}
}
