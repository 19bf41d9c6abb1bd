package layer

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Intact returns the record of a layer or fix-up that equals its seal. If there is doubt, it compares them and, if they
// differ, unpacks the layer again. It returns errdefs.ErrNotFound if the layer has no record, and errdefs.ErrDataLoss
// if it is broken and its blob is not here.
func (s *Store) Intact(ctx context.Context, key string) (metadata.Layer, error) {
	rec, err := s.Record(key)
	if err != nil {
		return rec, err
	}
	return s.intact(ctx, rec)
}

// Servable is like Intact for a layer that overlay mounts. If the layer was unpacked on a file system that has no
// whiteouts of overlay, it is unpacked again, which succeeds if the root has since been copied to another file system.
// Otherwise the error is of class errdefs.ErrFailedPrecondition.
func (s *Store) Servable(ctx context.Context, key string) (metadata.Layer, error) {
	rec, err := s.Intact(ctx, key)
	if err != nil || !rec.PlainMarks || s.opts.Unmounted {
		return rec, err
	}
	defer s.locks.Lock("trust/" + key)()
	if rec, err = s.Record(key); err != nil || !rec.PlainMarks {
		return rec, err
	}
	if rec, err = (mending{s}).rebuild(ctx, rec); err != nil {
		return rec, fmt.Errorf("layer %s: %w", key, err)
	}
	if rec.PlainMarks {
		const text = "layer %s: this file system has no whiteouts for overlay to show: %w"
		return rec, cause.Mark(fmt.Errorf(text, key, errdefs.ErrFailedPrecondition), cause.FileSystem, "")
	}
	s.trusted(metadata.LayerNode(key), rec.Dir)
	return rec, nil
}

// intact is Intact for a record that was just read.
func (s *Store) intact(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	n := metadata.LayerNode(rec.Key)
	if !s.doubts.Has(n) {
		return rec, nil
	}
	defer s.locks.Lock("trust/" + rec.Key)()
	if !s.doubts.Has(n) {
		return s.Record(rec.Key) // another call has compared it meanwhile
	}
	err := compareLayer(ctx, s, rec)
	if errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("layer", rec.Key).
			Warn("layer was not written out before the last stop: unpacking it again")
		rec, err = (mending{s}).rebuild(ctx, rec)
	}
	if err != nil {
		return rec, fmt.Errorf("layer %s: %w", rec.Key, err)
	}
	s.trusted(n, rec.Dir)
	return rec, nil
}

// compareLayer compares a layer or fix-up with its seal, and an ordered layer with its order.
func compareLayer(ctx context.Context, s *Store, rec metadata.Layer) error {
	err := s.modes.compare(ctx, s.at.fs(rec.Dir), s.at.seal(rec.Dir))
	if err == nil && rec.Ordered {
		err = tree.CheckOrder(ctx, s.at.entry(rec.Dir))
	}
	return err
}

func (m *modes) compare(ctx context.Context, dir, seal string) error {
	defer m.exclusive()()
	return compare(ctx, dir, seal)
}

// compare compares a directory with its seal. An error of class errdefs.ErrDataLoss names the first difference.
func compare(ctx context.Context, dir, seal string) error {
	var first error
	err := tree.CompareSeal(ctx, seal, dir, func(path, what string) {
		if first == nil {
			first = fmt.Errorf("%s: %s: %w", path, what, tree.ErrDiffers)
		}
	})
	if err != nil {
		return err
	}
	return first
}
