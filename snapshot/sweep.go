package snapshot

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Stats is what a sweep removed.
type Stats struct {
	Layers    int // layers and fix-ups
	Rootfs    int
	Snapshots int
}

// Sweep deletes the directories that have no record, and finished unpacks that nobody wants any more. It moves them
// aside under the gate and deletes them after it. What can't be deleted does not keep it from the rest: a
// leftover.Error names that, and the next sweep tries again.
func (s *Store) Sweep(ctx context.Context) (Stats, error) {
	unclaimed := s.unpacks.dropUnclaimed(time.Now())
	stats, moved, err := s.moveUnrecorded()
	older, lerr := s.dir.Leftovers(ctx, pools...) // the background may not have deleted that yet
	moved, err = append(moved, older...), errors.Join(err, lerr)
	// The caller of a sweep wants the space now, also that of what waits to be deleted already.
	return stats, leftover.Join(unclaimed, err, s.dir.Empty(ctx, moved...))
}

// Count counts the bytes of disk blocks that deletions free from now on, until end is called, which returns their sum.
func (s *Store) Count() (end func() int64) { return s.dir.Count() }

func (s *Store) moveUnrecorded() (stats Stats, moved []string, err error) {
	defer s.dir.BeginSweep()()
	var gone []string
	err = s.db.View(func(tx *metadata.Tx) error {
		layers, err := s.unrecorded("layers", func() (map[string]bool, error) { return layerDirs(tx) })
		if err != nil {
			return err
		}
		snapshots, err := s.unrecorded("snapshots", func() (map[string]bool, error) { return snapshotDirs(tx) })
		if err != nil {
			return err
		}
		rootfs, err := s.unrecordedRootfs(tx)
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

// unrecorded lists the directories below kind/ that have no record. A record that can't be read is an error,
// because it may be the record of any of these directories.
func (s *Store) unrecorded(kind string, recorded func() (map[string]bool, error)) ([]string, error) {
	names, err := os.ReadDir(s.path(kind))
	if err != nil || len(names) == 0 {
		return nil, err
	}
	known, err := recorded()
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, n := range names {
		if !known[n.Name()] && !rootdir.IsStaged(n.Name()) && !rootdir.IsLostFound(n.Name()) {
			gone = append(gone, s.path(kind, n.Name()))
		}
	}
	return gone, nil
}

func layerDirs(tx *metadata.Tx) (map[string]bool, error) {
	dirs := map[string]bool{}
	for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
		l, err := tx.Layer(key)
		if err != nil {
			return nil, err
		}
		dirs[l.Dir] = true
	}
	return dirs, nil
}

func snapshotDirs(tx *metadata.Tx) (map[string]bool, error) {
	dirs := map[string]bool{}
	for _, key := range tx.Keys(metadata.KindSnapshot, "", -1) {
		sn, err := tx.Snapshot(key)
		if err != nil {
			return nil, err
		}
		dirs[sn.Dir] = true
	}
	return dirs, nil
}

func (s *Store) unrecordedRootfs(tx *metadata.Tx) ([]string, error) {
	algs, err := os.ReadDir(s.path("rootfs"))
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, alg := range algs {
		if rootdir.IsStaged(alg.Name()) || rootdir.IsLostFound(alg.Name()) {
			continue
		}
		names, err := os.ReadDir(s.path("rootfs", alg.Name()))
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if rootdir.IsStaged(n.Name()) {
				continue
			}
			d := digest.NewDigestFromEncoded(digest.Algorithm(alg.Name()), strings.TrimSuffix(n.Name(), ".seal"))
			if _, err := tx.Rootfs(d); errdefs.IsNotFound(err) {
				gone = append(gone, s.path("rootfs", alg.Name(), n.Name()))
			}
		}
	}
	return gone, nil
}
