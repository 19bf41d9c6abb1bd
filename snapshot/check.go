package snapshot

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// Check compares every layer, fix-up and rootfs with its seal, in both directions, and verifies that the directories of
// snapshots exist and that their durable records are whole. It calls report for each fault.
func (s *Store) Check(ctx context.Context, report func(metadata.Fault)) error {
	if err := s.layers.Check(ctx, report); err != nil {
		return err
	}
	var snapshots []metadata.Snapshot
	err := s.db.View(func(tx *metadata.Tx) error {
		for _, key := range tx.Keys(metadata.KindSnapshot, "", -1) {
			sn, err := tx.Snapshot(key)
			if err != nil {
				return err
			}
			if sn.Entry() != "" {
				snapshots = append(snapshots, sn)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, sn := range snapshots {
		if err := ctx.Err(); err != nil {
			return err
		}
		checkSnapshot(s, sn, report)
	}
	return ctx.Err()
}

// CheckSnapshot does what Check does for one snapshot. A snapshot without a record has no fault.
func (s *Store) CheckSnapshot(key string, report func(metadata.Fault)) error {
	sn, err := s.snapshot(key)
	if err == nil && sn.Entry() != "" {
		checkSnapshot(s, sn, report)
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// MendRecord writes the durable record of a snapshot again.
func MendRecord(ctx context.Context, s *Store, key string) { s.records.Note(ctx, key, record.Now) }

func checkSnapshot(s *Store, sn metadata.Snapshot, report func(metadata.Fault)) {
	fault := func(damage metadata.Damage, mend metadata.Mend, err error) {
		// The snapshot may have been removed or committed since its record was read.
		if now, nerr := s.snapshot(sn.Key); nerr == nil && now.Entry() == sn.Entry() {
			report(metadata.Fault{
				Damage: damage, Node: metadata.SnapshotNode(sn.Key), Mend: mend,
				Err: fmt.Errorf("snapshot %s: %w", sn.Key, err),
			})
		}
	}
	if sn.Dir != "" {
		dir := s.path("snapshots", sn.Dir, "fs")
		if _, err := os.Lstat(dir); err != nil {
			fault(metadata.MissingBytes, metadata.MendNothing,
				fmt.Errorf("directory %s: missing: %w", dir, errdefs.ErrDataLoss))
			return
		}
	}
	if err := record.Check(s.path("snapshots", sn.Entry())); err != nil {
		fault(metadata.DifferentBytes, metadata.MendRecord, err)
	}
}
