package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/replaced"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Check compares every layer, fix-up and rootfs with its seal, in both directions, and reports each difference. What
// differs is in doubt from then on: it is mended before it is served, or not served.
func (s *Store) Check(ctx context.Context, report func(metadata.Fault)) error {
	c := checker{s, report}
	layers, rootfs, err := recorded(s.db)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.layer(ctx, l)
	}
	for _, d := range rootfs {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.rootfs(ctx, d)
	}
	return ctx.Err()
}

// CheckNode does what Check does for one layer, fix-up or rootfs. A node without a record has no fault.
func (s *Store) CheckNode(ctx context.Context, n metadata.Node, report func(metadata.Fault)) error {
	c := checker{s, report}
	if n.Kind == metadata.KindRootfs {
		if s.db.View(func(tx *metadata.Tx) error { _, err := tx.Rootfs(digest.Digest(n.Key)); return err }) == nil {
			c.rootfs(ctx, digest.Digest(n.Key))
		}
		return ctx.Err()
	}
	l, err := s.Record(n.Key)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		c.layer(ctx, l)
	}
	return errors.Join(err, ctx.Err())
}

// checker reports how directories differ from their seals.
type checker struct {
	s      *Store
	report func(metadata.Fault)
}

func (c checker) rootfs(ctx context.Context, d digest.Digest) {
	s, dir := c.s, c.s.at.rootfs(d)
	f := metadata.Fault{Damage: metadata.DifferentBytes, Node: metadata.RootfsNode(d), Mend: metadata.MendAssemble}
	c.sealed(ctx, f, dir, dir+".seal", func() bool {
		return s.db.View(func(tx *metadata.Tx) error { _, err := tx.Rootfs(d); return err }) == nil
	})
}

func (c checker) layer(ctx context.Context, l metadata.Layer) {
	s := c.s
	f := metadata.Fault{Damage: metadata.DifferentBytes, Node: metadata.LayerNode(l.Key), Mend: metadata.MendUnpack}
	unchanged := func() bool {
		now, err := s.Record(l.Key)
		return err == nil && now.Dir == l.Dir
	}
	c.sealed(ctx, f, s.at.fs(l.Dir), s.at.seal(l.Dir), unchanged)
	if !l.Ordered {
		return
	}
	err := tree.CheckOrder(ctx, s.at.entry(l.Dir))
	if err != nil && ctx.Err() == nil && unchanged() {
		s.doubts.Add(f.Node)
		f.Err = fmt.Errorf("layer %s: %s: %w: %w", l.Key, s.at.entry(l.Dir), err, errdefs.ErrDataLoss)
		c.report(f)
	}
}

// IsReplaced reports whether the key of a layer record is that of a directory that a repair has replaced. Nothing
// compares or serves such a directory.
func IsReplaced(key string) bool { return replaced.Is(key) }

func recorded(db *metadata.DB) (layers []metadata.Layer, rootfs []digest.Digest, err error) {
	err = db.View(func(tx *metadata.Tx) error {
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			if replaced.Is(key) {
				continue // it is broken, and nothing but old mounts uses it
			}
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

// sealed reports how a directory differs from its seal, unless it was removed or replaced meanwhile. base is each fault
// without its error.
func (c checker) sealed(ctx context.Context, base metadata.Fault, dir, seal string, unchanged func() bool) {
	kind, name := base.Subject()
	what := kind + " " + name
	var faults []error
	count := 0
	done := c.s.modes.exclusive()
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
	if len(faults) == 0 || !unchanged() {
		return
	}
	c.s.doubts.Add(base.Node) // so that it is mended, or refused, when it is needed the next time
	for _, err := range faults {
		f := base
		f.Err = err
		c.report(f)
	}
}
