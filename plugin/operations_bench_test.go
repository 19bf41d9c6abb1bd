package plugin_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
)

// The numbers of snapshots among which the operations are measured.
var populations = []int{10, 10_000}

// BenchmarkOperations measures the calls of containerd through a unix socket and its own proxy
// client, among few and among many snapshots. The database is synced to the disk of TMPDIR. See
// docs/performance.md.
func BenchmarkOperations(b *testing.B) {
	ctx := context.Background()
	for _, n := range populations {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			root := populate(b, n)
			w, err := serveWith(root, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := w.close(); err != nil {
					b.Error(err)
				}
			})
			sn := w.sn()
			key := func(i int) string { return fmt.Sprintf("default/%d/bench", i) }
			i := 0
			prepare := func(b *testing.B) {
				i++
				if _, err := sn.Prepare(ctx, key(i), "base"); err != nil {
					b.Fatal(err)
				}
			}
			remove := func(b *testing.B, key string) {
				if err := sn.Remove(ctx, key); err != nil {
					b.Fatal(err)
				}
			}
			commit := func(b *testing.B) {
				if err := sn.Commit(ctx, key(i)+"-c", key(i)); err != nil {
					b.Fatal(err)
				}
			}
			nothing := func(*testing.B) {}
			for _, row := range []struct {
				name                 string
				before, timed, after func(*testing.B)
			}{
				{"PrepareRemove", nothing, func(b *testing.B) { prepare(b); remove(b, key(i)) }, nothing},
				{"Prepare", nothing, prepare, func(b *testing.B) { remove(b, key(i)) }},
				{"Remove", prepare, func(b *testing.B) { remove(b, key(i)) }, nothing},
				{"Commit", prepare, commit, func(b *testing.B) { remove(b, key(i)+"-c") }},
				{"Mounts", nothing, func(b *testing.B) {
					if ms, err := sn.Mounts(ctx, seeded(0)); err != nil || len(ms) != 1 {
						b.Fatal(ms, err)
					}
				}, nothing},
				{"Stat", nothing, func(b *testing.B) {
					if _, err := sn.Stat(ctx, seeded(0)); err != nil {
						b.Fatal(err)
					}
				}, nothing},
				{"Usage", nothing, func(b *testing.B) {
					if _, err := sn.Usage(ctx, "base"); err != nil {
						b.Fatal(err)
					}
				}, nothing},
				{"Walk", nothing, func(b *testing.B) {
					seen := 0
					if err := sn.Walk(ctx,
						func(context.Context, snapshots.Info) error { seen++; return nil }); err != nil || seen < n+1 {
						b.Fatal(seen, err)
					}
				}, nothing},
			} {
				b.Run(row.name, func(b *testing.B) { quantiles(b, row.before, row.timed, row.after) })
			}
			b.Run("PrepareRemove8", func(b *testing.B) { // eight callers at once
				var all sync.Map
				turn := func(b *testing.B) {
					var wg sync.WaitGroup
					for c := range 8 {
						wg.Go(func() {
							k := fmt.Sprintf("default/%d/bench-%d", i, c)
							if _, err := sn.Prepare(ctx, k, "base"); err != nil {
								b.Error(err)
							}
							if err := sn.Remove(ctx, k); err != nil {
								b.Error(err)
							}
							all.Store(k, nil)
						})
					}
					wg.Wait()
				}
				quantiles(b, func(*testing.B) { i++ }, turn, nothing)
			})
		})
	}
}

// BenchmarkStart opens a root and answers the first call.
func BenchmarkStart(b *testing.B) {
	for _, n := range populations {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			root := populate(b, n)
			var w *world
			quantiles(b, func(*testing.B) {}, func(b *testing.B) {
				var err error
				if w, err = serveWith(root, nil); err != nil {
					b.Fatal(err)
				}
				if _, err = w.sn().Stat(context.Background(), "base"); err != nil {
					b.Fatal(err)
				}
			}, func(b *testing.B) {
				if err := w.close(); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// quantiles reports the median and the 99th percentile of timed in milliseconds. before and after are
// nobody's time.
func quantiles(b *testing.B, before, timed, after func(*testing.B)) {
	b.ReportAllocs()
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		before(b)
		b.StartTimer()
		begin := time.Now()
		timed(b)
		took = append(took, time.Since(begin))
		b.StopTimer()
		after(b)
		b.StartTimer()
	}
	slices.Sort(took)
	at := func(part float64) float64 {
		return float64(took[min(int(part*float64(len(took))), len(took)-1)]) / float64(time.Millisecond)
	}
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}

func seeded(i int) string { return fmt.Sprintf("default/%d/seeded", i) }

// populate makes a root with n active snapshots above a committed one.
func populate(b *testing.B, n int) (root string) {
	b.Helper()
	root = b.TempDir()
	ctx := context.Background()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	store, err := snapshot.Open(root, db, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	sn := store.For(metadata.Containerd)
	if _, err := sn.Prepare(ctx, "base-", ""); err != nil {
		b.Fatal(err)
	}
	if err := sn.Commit(ctx, "base", "base-"); err != nil {
		b.Fatal(err)
	}
	for from := 0; from < n; from += 500 {
		if err := db.Update(func(tx *metadata.Tx) error {
			for i := from; i < min(n, from+500); i++ {
				s := metadata.Snapshot{Key: seeded(i), Kind: metadata.Active, Parent: "base",
					Dir: strconv.Itoa(1000 + i), Created: time.Now(),
					Labels: map[string]string{"containerd.io/gc.root": "2026-01-01T00:00:00Z"}}
				if err := os.MkdirAll(filepath.Join(root, "snapshots", s.Dir, "fs"), 0o755); err != nil {
					return err
				}
				if err := os.Mkdir(filepath.Join(root, "snapshots", s.Dir, "work"), 0o711); err != nil {
					return err
				}
				if err := tx.PutSnapshot(s); err != nil {
					return err
				}
				if err := tx.Hold(metadata.Containerd, metadata.SnapshotNode(s.Key)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Update(func(tx *metadata.Tx) error { return tx.SkipIDs(uint64(1000 + n)) }); err != nil {
		b.Fatal(err)
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	return root
}
