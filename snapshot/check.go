package snapshot

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// Check compares every layer, fix-up and rootfs with its seal, in both directions, and verifies that the directories of
// snapshots exist. It calls report for each difference and each missing directory.
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
			if sn.Dir != "" {
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
		dir := s.path("snapshots", sn.Dir, "fs")
		if _, err := os.Lstat(dir); err != nil {
			// The snapshot may have been removed or committed since its record was read.
			if now, err := s.snapshot(sn.Key); err == nil && now.Dir == sn.Dir {
				report(metadata.Fault{
					Damage: metadata.MissingBytes, Node: metadata.SnapshotNode(sn.Key),
					Err: fmt.Errorf("snapshot %s: directory %s: missing: %w", sn.Key, dir, errdefs.ErrDataLoss),
				})
			}
		}
	}
	return ctx.Err()
}
