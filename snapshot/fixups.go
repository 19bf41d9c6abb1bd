package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tank-snapshotter/tank/internal/budget"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// errReleased says that a fix-up that was there when it was looked for has lost its last holder since.
var errReleased = errors.New("released meanwhile")

// ensureFixup finds out what a committed snapshot's layer needs above its parent, makes it, and records it. The
// snapshots below must have theirs. It returns the record as it is then.
func (s *Store) ensureFixup(ctx context.Context, key string) (metadata.Snapshot, error) {
	defer s.locks.Lock("snapshot/" + key)()
	for {
		if sn, err := s.makeFixup(ctx, key); !errors.Is(err, errReleased) {
			return sn, err
		}
	}
}

func (s *Store) makeFixup(ctx context.Context, key string) (metadata.Snapshot, error) {
	sn, err := s.snapshot(key)
	if err != nil || sn.Fixup != "" || sn.Layer == "" {
		return sn, err
	}
	rec, err := s.layer(sn.Layer)
	if err != nil {
		return sn, err
	}
	fixup := metadata.NoFixup
	staged, made := "", metadata.Layer{}
	if rec.NeedsFixup {
		p, err := s.planFor(ctx, sn, rec)
		if err != nil {
			return sn, fmt.Errorf("snapshot %s: %w", key, err)
		}
		defer p.close()
		if !p.Empty() {
			fixup = metadata.FixupKey(p.Facts(rec.DiffID))
			if _, err := s.layer(fixup); err != nil {
				staged = s.dir.Stage(rootdir.Layers, "fixup")
				if made, err = s.build(ctx, staged, p.Plan); err != nil {
					return sn, fmt.Errorf("snapshot %s: fix-up: %w", key, err)
				}
			}
			made.Key = fixup
		}
	}
	return s.recordFixup(key, fixup, staged, made, func(sn *metadata.Snapshot) { sn.Fixup = fixup })
}

// recordFixup puts a finished fix-up into its place, unless it is there already, and has the snapshot stand on it.
func (s *Store) recordFixup(key, fixup, staged string, made metadata.Layer,
	set func(*metadata.Snapshot),
) (sn metadata.Snapshot, err error) {
	used := false
	record := func(tx *metadata.Tx, dir string) (bool, error) {
		used = false
		var err error
		if sn, err = tx.Snapshot(key); err != nil {
			return false, err
		}
		set(&sn)
		if err := tx.PutSnapshot(sn); err != nil || fixup == metadata.NoFixup {
			return false, err
		}
		if _, err := tx.Layer(fixup); err != nil {
			if dir == "" {
				return false, errReleased
			}
			used, made.Dir = true, dir
			if err := tx.PutLayer(made); err != nil {
				return false, err
			}
		}
		return used, tx.Hold(metadata.SnapshotHolder(key), metadata.LayerNode(fixup))
	}
	if staged == "" {
		err = s.db.Update(func(tx *metadata.Tx) error {
			_, err := record(tx, "")
			return err
		})
		return sn, err
	}
	err = s.dir.Place(rootdir.Entry{Kind: metadata.KindLayer, Staged: staged}, record)
	if err == nil && used {
		s.syncer.add(metadata.LayerNode(fixup), made.Dir)
	}
	return sn, err
}

// openPlan is a plan with the directories it reads.
type openPlan struct {
	*overlay.Plan
	dirs  []*os.File
	claim *budget.Claim // what the plan takes
}

func (p *openPlan) close() {
	for _, d := range p.dirs {
		d.Close()
	}
	if p.Plan != nil {
		p.Parent.Close()
	}
	p.claim.Release()
}

// planFor plans the fix-up of a snapshot's layer above the snapshot's parent.
func (s *Store) planFor(ctx context.Context, sn metadata.Snapshot, rec metadata.Layer) (*openPlan, error) {
	st, err := s.stack(ctx, sn.Parent)
	if err != nil {
		return nil, err
	}
	if rec, err = s.trustLayer(ctx, rec); err != nil {
		return nil, err
	}
	return s.openPlanOf(ctx, s.path("layers", rec.Dir), rec, st.dirs)
}

// openPlanOf plans the fix-up of a layer whose directory is layerDir above a stack.
func (s *Store) openPlanOf(ctx context.Context, layerDir string, rec metadata.Layer, below []overlay.Dir) (
	p *openPlan, err error,
) {
	p = &openPlan{claim: s.memory.Claim(nil)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	l := overlay.Layer{NewDir: s.usualRoot()}
	open := func(name string) (*os.File, error) {
		f, err := nodes.OpenTree(filepath.Join(layerDir, name))
		if err == nil {
			p.dirs = append(p.dirs, f)
		}
		return f, err
	}
	sealed, err := tree.OpenSeal(ctx, filepath.Join(layerDir, "seal"))
	if err != nil {
		return p, err
	}
	self, err := open("fs")
	if err != nil {
		return p, err
	}
	l.Entries, l.Self = sealed.Each, &overlay.Element{Name: rec.Key, Root: self}
	if rec.Ordered {
		if l.Steps, err = tree.OpenOrder(ctx, layerDir); err != nil {
			return p, err
		}
		aside, err := open(tree.AsideName)
		if err == nil {
			l.Aside = &overlay.Element{Name: tree.AsideName, Root: aside}
		} else if !errors.Is(err, os.ErrNotExist) {
			return p, err
		}
	}
	parent, err := overlay.OpenMerged(below)
	if err != nil {
		return p, err
	}
	rights := s.opts.Unpack
	p.Plan, err = overlay.PlanFixup(ctx, l, parent, rights.Unprivileged || rights.Confined, func(bytes int64) error {
		return p.claim.Grow(ctx, bytes)
	})
	if err != nil {
		parent.Close()
		p.Plan = nil
		return p, err
	}
	if rights.Unprivileged {
		p.Tree.SetOwner(uint32(os.Geteuid()), uint32(os.Getegid()))
	}
	return p, nil
}

// stageFixup makes the fix-up, or the root directory, that a snapshot stands on once more, in the pool of layers.
func (s *Store) stageFixup(ctx context.Context, sn metadata.Snapshot, key string) (staged string, made metadata.Layer, err error) {
	if sn.ViewRoot == key {
		st, err := s.stack(ctx, sn.Parent)
		if err != nil {
			return "", made, err
		}
		staged = s.dir.Stage(rootdir.Layers, "fixup")
		made, err = s.buildTree(ctx, staged, tree.New(st.root), nil)
		return staged, made, err
	}
	rec, err := s.layer(sn.Layer)
	if err != nil {
		return "", made, err
	}
	p, err := s.planFor(ctx, sn, rec)
	if err != nil {
		return "", made, err
	}
	defer p.close()
	staged = s.dir.Stage(rootdir.Layers, "fixup")
	made, err = s.build(ctx, staged, p.Plan)
	return staged, made, err
}
