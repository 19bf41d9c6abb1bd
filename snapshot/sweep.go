package snapshot

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Stats counts the entries that a sweep removed.
type Stats struct {
	Layers    int // layers and fix-ups
	Rootfs    int
	Snapshots int
}

// Sweep deletes directories that have no record, and finished unpacks that were not claimed in time. It
// renames them while no directory can get a position, and deletes them afterwards. If something can't
// be deleted, Sweep goes on with the rest and returns a leftover.Error; the next sweep tries again.
func (s *Store) Sweep(ctx context.Context) (stats Stats, err error) {
	ctx, end := observe.Begin(ctx, s.opts.Observe, observe.Event{Kind: observe.Sweep, Subject: "layers"})
	freed := func() int64 { return 0 }
	if s.opts.Observe != nil {
		freed = s.dir.Count()
	}
	defer func() {
		end(observe.Result{Err: err, Bytes: freed(), Count: int64(stats.Layers + stats.Rootfs + stats.Snapshots)})
	}()
	unclaimed := s.layers.DropUnclaimed(time.Now())
	stats, moved, err := s.moveUnrecorded()
	older, lerr := s.dir.Leftovers(ctx, pools...) // the background may not have deleted that yet
	moved, err = append(moved, older...), errors.Join(err, lerr)
	// The caller wants the space now, also the space of what already waits to be deleted.
	return stats, leftover.Join(unclaimed, err, s.dir.Empty(ctx, moved...))
}

// Count begins to count the bytes of disk blocks that deletions free. end ends the count and returns the sum.
func (s *Store) Count() (end func() int64) { return s.dir.Count() }

func (s *Store) moveUnrecorded() (stats Stats, moved []string, err error) {
	defer s.dir.BeginSweep()()
	var gone []string
	err = s.db.View(func(tx *metadata.Tx) error {
		layers, rootfs, err := s.layers.Unrecorded(tx)
		if err != nil {
			return err
		}
		snapshots, err := s.dir.Unrecorded(rootdir.Snapshots,
			func() (map[string]bool, error) { return snapshotDirs(tx) })
		stats = Stats{Layers: len(layers), Snapshots: len(snapshots), Rootfs: len(rootfs) / 2}
		gone = append(append(layers, snapshots...), rootfs...)
		return err
	})
	if err != nil {
		return stats, nil, err
	}
	var errs []error
	for _, p := range gone {
		to, err := s.dir.Aside(p)
		if errors.Is(err, os.ErrNotExist) {
			continue // the snapshot's removal has moved it already
		}
		moved, errs = append(moved, to), append(errs, err)
	}
	return stats, moved, errors.Join(errs...)
}

func snapshotDirs(tx *metadata.Tx) (map[string]bool, error) {
	dirs := map[string]bool{}
	for _, key := range tx.Keys(metadata.KindSnapshot, "", -1) {
		sn, err := tx.Snapshot(key)
		if err != nil {
			return nil, err
		}
		dirs[sn.Entry()] = true
	}
	return dirs, nil
}
