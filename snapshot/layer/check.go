package layer

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Check compares every layer, fix-up and rootfs with its seal, in both directions, and reports each difference.
func (s *Store) Check(ctx context.Context, report func(metadata.Fault)) error {
	layers, rootfs, err := recorded(s.db)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.checkLayer(ctx, l, report)
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
	return ctx.Err()
}

func (s *Store) checkLayer(ctx context.Context, l metadata.Layer, report func(metadata.Fault)) {
	f := metadata.Fault{Damage: metadata.DifferentBytes, Node: metadata.LayerNode(l.Key), Mend: metadata.MendUnpack}
	unchanged := func() bool {
		now, err := s.Record(l.Key)
		return err == nil && now.Dir == l.Dir
	}
	s.checkSealed(ctx, f, s.fs(l.Dir), s.seal(l.Dir), report, unchanged)
	if !l.Ordered {
		return
	}
	err := tree.CheckOrder(ctx, s.entry(l.Dir))
	if err != nil && ctx.Err() == nil && unchanged() {
		f.Err = fmt.Errorf("layer %s: %s: %w: %w", l.Key, s.entry(l.Dir), err, errdefs.ErrDataLoss)
		report(f)
	}
}

func recorded(db *metadata.DB) (layers []metadata.Layer, rootfs []digest.Digest, err error) {
	err = db.View(func(tx *metadata.Tx) error {
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
		return nil
	})
	return layers, rootfs, err
}

// maxFaults is how many differences of one directory are reported one by one.
const maxFaults = 1000

// checkSealed reports how a directory differs from its seal, unless it was removed meanwhile. base is each fault without
// its error.
func (s *Store) checkSealed(ctx context.Context, base metadata.Fault, dir, seal string,
	report func(metadata.Fault), unchanged func() bool,
) {
	kind, name := base.Subject()
	what := kind + " " + name
	var faults []error
	count := 0
	done := s.exclusive()
	err := tree.CompareSeal(ctx, seal, dir, func(path, diff string) {
		if count++; count <= maxFaults {
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
	if count > maxFaults {
		faults = append(faults,
			fmt.Errorf("%s: %s: %d more differences: %w", what, dir, count-maxFaults, errdefs.ErrDataLoss))
	}
	if len(faults) > 0 && !unchanged() {
		return
	}
	for _, err := range faults {
		f := base
		f.Err = err
		report(f)
	}
}
