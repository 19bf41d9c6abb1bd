package snapshot

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Check compares every layer, fix-up and rootfs with its seal, both ways, and looks for the directories of snapshots. It
// reports each fault with the path.
func (s *Store) Check(ctx context.Context, report func(metadata.Fault)) error {
	layers, rootfs, snapshots, err := s.recorded()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := s.path("layers", l.Dir)
		s.checkSealed(ctx, layerFault(l), dir+"/fs", dir+"/seal", report, func() bool {
			now, err := s.layer(l.Key)
			return err == nil && now.Dir == l.Dir
		})
		if !l.Ordered {
			continue
		}
		if err := tree.CheckOrder(ctx, dir); err != nil && ctx.Err() == nil {
			if now, gone := s.layer(l.Key); gone == nil && now.Dir == l.Dir {
				f := layerFault(l)
				f.Err = fmt.Errorf("layer %s: %s: %w: %w", l.Key, dir, err, errdefs.ErrDataLoss)
				report(f)
			}
		}
	}
	for _, d := range rootfs {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := s.rootfsPath(d)
		f := metadata.Fault{Damage: metadata.DifferentBytes, Node: metadata.RootfsNode(d), Mend: metadata.MendAssemble}
		s.checkSealed(ctx, f, dir, dir+".seal", report, func() bool {
			return s.db.View(func(tx *metadata.Tx) error { _, err := tx.Rootfs(d); return err }) == nil
		})
	}
	for _, sn := range snapshots {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := s.path("snapshots", sn.Dir, "fs")
		if _, err := os.Lstat(dir); err != nil {
			if now, gone := s.snapshot(sn.Key); gone == nil && now.Dir == sn.Dir {
				report(metadata.Fault{
					Damage: metadata.MissingBytes, Node: metadata.SnapshotNode(sn.Key),
					Err: fmt.Errorf("snapshot %s: directory %s: missing: %w", sn.Key, dir, errdefs.ErrDataLoss),
				})
			}
		}
	}
	return ctx.Err()
}

// layerFault is what is wrong with a layer or fix-up that differs from its seal, without the text.
func layerFault(l metadata.Layer) metadata.Fault {
	return metadata.Fault{Damage: metadata.DifferentBytes, Node: metadata.LayerNode(l.Key), Mend: metadata.MendUnpack}
}

func (s *Store) recorded() (layers []metadata.Layer, rootfs []digest.Digest, snapshots []metadata.Snapshot, err error) {
	err = s.db.View(func(tx *metadata.Tx) error {
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			l, err := tx.Layer(key)
			if err != nil {
				return err
			}
			layers = append(layers, l)
		}
		for _, key := range tx.Keys(metadata.KindRootfs, "", -1) {
			rootfs = append(rootfs, digest.Digest(key))
		}
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
	return layers, rootfs, snapshots, err
}

// maxFaults is how many differences of one directory are reported one by one.
const maxFaults = 1000

// checkSealed reports how a directory differs from its seal, unless it was removed meanwhile. base is each fault without
// its text.
func (s *Store) checkSealed(ctx context.Context, base metadata.Fault, dir, seal string,
	report func(metadata.Fault), still func() bool,
) {
	kind, name := base.Subject()
	what := kind + " " + name
	var faults []error
	more := 0
	done := s.alone()
	err := tree.CompareSeal(ctx, seal, dir, func(path, diff string) {
		if more++; more <= maxFaults {
			faults = append(faults, fmt.Errorf("%s: %s/%s: %s: %w", what, dir, path, diff, errdefs.ErrDataLoss))
		}
	})
	done()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		faults = append(faults, fmt.Errorf("%s: %w: %w", what, err, errdefs.ErrDataLoss))
	}
	if more > maxFaults {
		faults = append(faults, fmt.Errorf("%s: %s: %d more differences: %w", what, dir, more-maxFaults, errdefs.ErrDataLoss))
	}
	if len(faults) > 0 && !still() {
		return
	}
	for _, err := range faults {
		f := base
		f.Err = err
		report(f)
	}
}
