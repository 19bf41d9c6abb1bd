package metadata_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank/metadata"
)

// BenchmarkTransactions measures a write and a read among 10,000 snapshots. The time of a flush depends on the disk of
// TMPDIR.
func BenchmarkTransactions(b *testing.B) {
	db, err := metadata.Open(filepath.Join(b.TempDir(), "metadata.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	put := func(key string) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error {
			if err := tx.PutSnapshot(metadata.Snapshot{Key: key, Kind: metadata.Active}); err != nil {
				return err
			}
			return tx.Hold(metadata.Containerd, metadata.SnapshotNode(key))
		}
	}
	remove := func(key string) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error { return tx.Release(metadata.Containerd, metadata.SnapshotNode(key)) }
	}
	if err := db.Update(func(tx *metadata.Tx) error {
		for i := range 10_000 {
			if err := put(fmt.Sprintf("default/%d/seeded", i))(tx); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	look := func(tx *metadata.Tx) error {
		_, err := tx.Snapshot("default/5000/seeded")
		return err
	}
	for _, row := range []struct {
		name string
		run  func() error
	}{
		{"PutRelease", func() error {
			if err := db.Batch(put("bench")); err != nil {
				return err
			}
			_, err := db.UpdateDeferred(remove("bench"))
			return err
		}},
		{"Look", func() error { return db.ViewPending(look) }},
		{"Walk", func() error {
			return db.View(func(tx *metadata.Tx) error {
				for _, key := range tx.Held(metadata.Containerd, metadata.KindSnapshot, "", -1) {
					if _, err := tx.Snapshot(key); err != nil {
						return err
					}
				}
				return nil
			})
		}},
	} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := row.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
		db.Flush()
	}
	b.Run("PutReleaseAtOnce", func(b *testing.B) {
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			key := fmt.Sprintf("bench/%p", pb)
			for pb.Next() {
				if err := db.Batch(put(key)); err != nil {
					b.Error(err)
				}
				if _, err := db.UpdateDeferred(remove(key)); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
