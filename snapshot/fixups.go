package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// ensureFixup plans, builds and records the fix-up of a committed snapshot, unless that was done, and
// returns the record of the snapshot afterwards. The snapshots below must have their fix-ups. It starts
// again if an existing fix-up that it wanted to use lost its last holder meanwhile.
func (s *Store) ensureFixup(ctx context.Context, key string) (metadata.Snapshot, error) {
	defer s.locks.Lock("snapshot/" + key)()
	for {
		if sn, err := s.makeFixup(ctx, key); !errors.Is(err, layer.ErrReleased) {
			return sn, err
		}
	}
}

// makeFixup is one attempt of ensureFixup.
func (s *Store) makeFixup(ctx context.Context, key string) (metadata.Snapshot, error) {
	defer s.layers.Readers().Begin()()
	sn, err := s.snapshot(key)
	if err != nil || sn.Fixup != "" || sn.Layer == "" {
		return sn, err
	}
	rec, err := s.layers.Record(sn.Layer)
	if err != nil {
		return sn, err
	}
	fixup := metadata.NoFixup
	var built *layer.Built
	if rec.NeedsFixup {
		p, err := s.planFor(ctx, sn)
		if err != nil {
			return sn, fmt.Errorf("snapshot %s: %w", key, err)
		}
		defer p.Close()
		if !p.Empty() {
			fixup = p.Key(rec.DiffID)
			if _, err := s.layers.Record(fixup); err != nil {
				if built, err = s.layers.Build(ctx, p); err != nil {
					return sn, fmt.Errorf("snapshot %s: fix-up: %w", key, err)
				}
			}
		}
	}
	return s.attachFixup(ctx, key, fixup, built, func(sn *metadata.Snapshot) { sn.Fixup = fixup })
}

// attachFixup records that a snapshot stands on a fix-up. set changes the record of the snapshot. If built is nil, the
// fix-up is recorded already or is metadata.NoFixup.
func (s *Store) attachFixup(ctx context.Context, key, fixup string, built *layer.Built,
	set func(*metadata.Snapshot),
) (sn metadata.Snapshot, err error) {
	change := func(tx *metadata.Tx) error {
		var err error
		if sn, err = tx.Snapshot(key); err != nil {
			return err
		}
		set(&sn)
		return tx.PutSnapshot(sn)
	}
	if fixup == metadata.NoFixup {
		err = s.db.Update(change)
	} else {
		err = s.layers.Attach(metadata.SnapshotHolder(key), fixup, built, change)
	}
	if err == nil {
		s.records.Note(ctx, key, record.Eventually)
	}
	return sn, err
}

// planFor plans the fix-up of a snapshot's layer above the snapshot's parent.
func (s *Store) planFor(ctx context.Context, sn metadata.Snapshot) (*layer.Plan, error) {
	st, err := s.stack(ctx, sn.Parent)
	if err != nil {
		return nil, err
	}
	return s.layers.Plan(ctx, sn.Layer, st.dirs)
}

// rebuildFixup builds a broken fix-up again, from the stack of a snapshot that stands on it. The key may also be that
// of a root directory of views.
func (s *Store) rebuildFixup(ctx context.Context, key string) (*layer.Built, error) {
	defer s.layers.Readers().Begin()()
	sn, err := s.standsOn(key)
	if err != nil {
		return nil, err
	}
	if err := s.doubtBelow(sn); err != nil {
		return nil, err
	}
	if sn.ViewRoot == key {
		st, err := s.stack(ctx, sn.Parent)
		if err != nil {
			return nil, err
		}
		return s.layers.BuildRoot(ctx, st.root)
	}
	p, err := s.planFor(ctx, sn)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return s.layers.Build(ctx, p)
}

// doubtBelow has everything compared that a fix-up of a snapshot is made from. Otherwise the new fix-up and its seal
// would repeat damage that nobody has found yet.
func (s *Store) doubtBelow(sn metadata.Snapshot) error {
	chain, err := s.chain(sn.Parent)
	if err != nil {
		return err
	}
	nodes := []metadata.Node{metadata.LayerNode(sn.Layer)}
	for _, below := range chain {
		nodes = append(nodes, metadata.LayerNode(below.Layer), metadata.LayerNode(below.Fixup))
	}
	return s.layers.Doubt(nodes...)
}

// standsOn returns the snapshot with the shortest chain that stands on a fix-up. None of its ancestors stands on it, so
// their stack can be read while the fix-up is broken.
func (s *Store) standsOn(fixup string) (sn metadata.Snapshot, err error) {
	var keys []string
	if err := s.db.ViewPending(func(tx *metadata.Tx) error {
		for _, h := range tx.Holders(metadata.LayerNode(fixup)) {
			if kind, key := h.Split(); kind == metadata.HolderSnapshot {
				keys = append(keys, key)
			}
		}
		return nil
	}); err != nil {
		return sn, err
	}
	shortest := 0
	for _, key := range keys {
		chain, err := s.chain(key)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return sn, err
		}
		if shortest == 0 || len(chain) < shortest {
			shortest, sn = len(chain), chain[0]
		}
	}
	if shortest == 0 {
		err = cause.Mark(fmt.Errorf("broken, and no snapshot stands on it: %w", errdefs.ErrDataLoss), cause.Damaged, "")
	}
	return sn, err
}
