package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// assembly builds one rootfs.
type assembly struct {
	s      *Store
	holder metadata.Holder
	staged string           // the new directory: it gets fs, seal and what is only needed meanwhile
	layers []metadata.Layer // lowest first
	opts   AssembleOptions

	seals  []*tree.Seal // of what was merged so far
	copied []string     // directories of consumed layers that were copied, for run to delete
	lost   nodes.LostXattrs
}

func (a *assembly) fs() string { return filepath.Join(a.staged, "fs") }

// run builds the rootfs and its seal, and completes rec.
func (a *assembly) run(ctx context.Context, rec *metadata.Rootfs) error {
	if err := os.Mkdir(a.fs(), 0o755); err != nil {
		return err
	}
	defer func() {
		if err := a.s.dir.Trash(a.copied...); err != nil {
			log.G(ctx).WithError(err).Warn("a consumed layer could not be deleted")
		}
	}()
	if err := a.merge(ctx); err != nil {
		return err
	}
	all, err := tree.Flatten(ctx, a.seals)
	if err != nil {
		return err
	}
	if err := a.finishRoot(&all.Root); err != nil {
		return err
	}
	a.lost.Warn(ctx, "rootfs "+rec.Manifest.String())
	rec.Size, rec.Inodes = all.Size, all.Inodes
	entries := a.lost.Without(all.Each(ctx))
	return tree.WriteSeal(filepath.Join(a.staged, "seal"), rec, all.Count, entries, !a.opts.NoSync)
}

// merge merges the layers with their fix-ups, lowest first.
func (a *assembly) merge(ctx context.Context) error {
	last := map[string]int{}
	for i, l := range a.layers {
		last[l.Key] = i
	}
	sources, err := a.sources(ctx)
	for _, src := range sources {
		if src.drop {
			a.copied = append(a.copied, src.dir)
		}
	}
	if err == nil && !a.opts.Consume {
		provisional := slices.ContainsFunc(a.layers, func(l metadata.Layer) bool { return !l.Durable })
		err = a.s.SyncForClones(ctx, provisional)
	}
	if err != nil {
		return err
	}
	for i, l := range a.layers {
		if i+1 < len(a.layers) && a.layers[i+1].Key == l.Key && !l.NeedsFixup {
			continue // merging the same layer twice in a row changes nothing
		}
		src := sources[l.Key]
		if src.seal == nil {
			if src.seal, err = tree.OpenSeal(ctx, filepath.Join(src.dir, "seal")); err != nil {
				return err
			}
			sources[l.Key] = src
		}
		src.move = src.move && last[l.Key] == i
		if err := a.mergeLayer(ctx, l, src); err != nil {
			return err
		}
	}
	return nil
}

// mergeLayer merges one layer and its fix-up, and adds their seals.
func (a *assembly) mergeLayer(ctx context.Context, l metadata.Layer, src source) error {
	fixup, err := a.fixup(ctx, src, l)
	if err != nil {
		return err
	}
	if err := a.mergeDir(ctx, filepath.Join(src.dir, "fs"), src.seal, src.move); err != nil {
		return fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	a.seals = append(a.seals, src.seal)
	if fixup == "" {
		return nil
	}
	at := filepath.Join(a.staged, fmt.Sprintf("fixup-%d.seal", len(a.seals)))
	if err := a.s.dir.MoveStaged(filepath.Join(fixup, "seal"), at); err != nil {
		return err
	}
	sealed, err := tree.OpenSeal(ctx, at)
	if err == nil {
		err = a.mergeDir(ctx, filepath.Join(fixup, "fs"), sealed, true)
	}
	if err != nil {
		return fmt.Errorf("layer %s: fix-up: %w", l.DiffID, err)
	}
	a.seals = append(a.seals, sealed)
	return a.s.dir.Trash(fixup)
}

// mergeDir merges a directory, by moving what is in it or by copying.
func (a *assembly) mergeDir(ctx context.Context, dir string, sealed *tree.Seal, move bool) (err error) {
	m := overlay.Merge{To: a.fs(), Move: move, Lost: &a.lost}
	if !move {
		m.Space, m.SharesExtents = diskspace.NewMeter(a.fs()), a.s.clones()
	} else {
		if m.Marked, err = overlay.MarkedDirs(sealed.Each); err != nil {
			return err
		}
	}
	return a.s.merge(ctx, &m, dir)
}

// source is where a layer is taken from.
type source struct {
	dir  string
	seal *tree.Seal // nil until it was read
	move bool       // its inodes are moved, not copied
	drop bool       // it is deleted after it was copied
}

// sources returns the source of each layer by its key. A layer that is consumed loses its record first.
// Then it is moved to the staged directory or, if that is on another file system, aside in its own
// pool, to be copied and deleted.
func (a *assembly) sources(ctx context.Context) (map[string]source, error) {
	s := a.s
	sources := map[string]source{}
	var consumed []metadata.Layer
	for _, l := range a.layers {
		rec, err := s.Intact(ctx, l.Key)
		if err != nil {
			return nil, err
		}
		sources[l.Key] = source{dir: s.at.entry(rec.Dir)}
	}
	if !a.opts.Consume {
		return sources, nil
	}
	defer s.dir.KeepSweepsAway()()
	err := s.db.Update(func(tx *metadata.Tx) error {
		for key := range sources {
			n := metadata.LayerNode(key)
			if hs := tx.Holders(n); len(hs) != 1 || hs[0] != a.holder {
				continue
			}
			rec, err := tx.Layer(key)
			if err != nil {
				return err
			}
			if err := tx.Release(a.holder, n); err != nil {
				return err
			}
			consumed = append(consumed, rec)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, rec := range consumed {
		src, err := a.consume(rec)
		if err != nil {
			return sources, err
		}
		if sources[rec.Key] = src; src.move || src.drop {
			s.replaced(metadata.LayerNode(rec.Key))
		}
	}
	return sources, nil
}

// consume moves the directory of a layer, which has lost its record, to the staged directory. If that
// is on another file system or has another project quota, the directory is moved aside in its pool, to
// be copied and deleted. If even that is impossible, because it was made before its pool got a quota,
// the layer gets its record back and is copied. Sweeps have to be kept away.
func (a *assembly) consume(rec metadata.Layer) (source, error) {
	from, to := a.s.at.entry(rec.Dir), filepath.Join(a.staged, "layer-"+rec.Dir)
	err := a.s.dir.MoveStaged(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return source{dir: to, move: true}, err
	}
	to = a.s.dir.StageBeside(from, "consumed")
	err = a.s.dir.MoveStaged(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return source{dir: to, drop: err == nil}, err
	}
	err = a.s.db.Update(func(tx *metadata.Tx) error {
		return errors.Join(tx.PutLayer(rec), tx.Hold(a.holder, metadata.LayerNode(rec.Key)))
	})
	return source{dir: from}, err
}

// fixup builds what the layer needs above what is merged so far; "" if it needs nothing.
func (a *assembly) fixup(ctx context.Context, src source, l metadata.Layer) (staged string, err error) {
	if !l.NeedsFixup {
		return "", nil
	}
	p, err := a.s.plan(ctx, src.dir, l, []overlay.Dir{{Name: "rootfs", Path: a.fs()}})
	if err != nil {
		return "", err
	}
	defer p.Close()
	if p.Empty() {
		return "", nil
	}
	staged = a.s.dir.StageBeside(a.staged, "fixup")
	_, err = a.s.build(ctx, staged, p.plan.Tree, p.plan.Copies)
	return staged, err
}

// finishRoot gives the root directory the attributes that the layers have for it.
func (a *assembly) finishRoot(root *entry.Entry) error {
	if root.Implied && a.s.opts.Unpack.Unprivileged {
		root.UID, root.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	return nodes.SetAttrs(a.fs(), root)
}
