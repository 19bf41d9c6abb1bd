package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// AssembleOptions of Assemble. nil means the zero value.
type AssembleOptions struct {
	// Consume lets Assemble move layers that nobody but the holder holds, instead of copying them. They are recorded as
	// gone first, and would be unpacked again from their blobs. For roots that no containerd uses.
	Consume bool
	// NoSync leaves the rootfs provisional instead of waiting until it is on disk.
	NoSync bool
}

// Rootfs returns the path of the assembled rootfs of a manifest, which holder holds from then on; errdefs.ErrNotFound
// when there is none or it is not what its seal says.
func (s *Store) Rootfs(ctx context.Context, holder metadata.Holder, manifest digest.Digest) (string, error) {
	n := metadata.RootfsNode(manifest)
	holds := false
	var rec metadata.Rootfs
	err := s.db.View(func(tx *metadata.Tx) (err error) {
		holds = tx.Holds(holder, n)
		rec, err = tx.Rootfs(manifest)
		return err
	})
	if err != nil {
		return "", err
	}
	path := s.rootfsPath(manifest)
	if s.suspect(n) {
		if err := s.intact(ctx, path, path+".seal"); ctx.Err() != nil {
			return "", fmt.Errorf("rootfs %s: %w", manifest, context.Cause(ctx))
		} else if err != nil {
			return "", fmt.Errorf("rootfs %s: %w: %w", manifest, err, errdefs.ErrNotFound)
		}
		s.trusted(n, rootfsVersion(rec))
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("rootfs %s: directory: %w", manifest, errdefs.ErrNotFound)
	}
	if !holds && !s.opts.ReadOnly {
		err = s.db.Batch(func(tx *metadata.Tx) error { return tx.Hold(holder, n) })
	}
	return path, err
}

func (s *Store) rootfsPath(manifest digest.Digest) string {
	return s.path("rootfs", manifest.Algorithm().String(), manifest.Encoded())
}

// Assemble makes the rootfs of a manifest from its layers, lowest first, all of which holder holds, and returns its path.
// An intact one that is there already is held and returned.
func (s *Store) Assemble(ctx context.Context, holder metadata.Holder, manifest digest.Digest,
	layers []metadata.Layer, opts *AssembleOptions,
) (string, error) {
	if opts == nil {
		opts = &AssembleOptions{}
	}
	defer s.locks.Lock("rootfs/" + manifest.String())()
	if path, err := s.Rootfs(ctx, holder, manifest); err == nil || !errdefs.IsNotFound(err) {
		return path, err
	}
	path := s.rootfsPath(manifest)
	if err := s.dir.MakeParent(path); err != nil {
		return "", fmt.Errorf("rootfs %s: %w", manifest, err)
	}
	staged := s.dir.StageBeside(path, "rootfs")
	rec := metadata.Rootfs{Manifest: manifest, Durable: !opts.NoSync, Created: time.Now().UTC()}
	var sync func() error
	if !opts.NoSync {
		sync = func() error { return s.dir.Sync(rootdir.Layers, rootdir.Rootfs) }
	}
	err := s.dir.Build(staged, func() error { return s.assemble(ctx, holder, staged, layers, opts, &rec) }, sync)
	if err == nil {
		err = s.placeRootfs(holder, staged, rec)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("rootfs %s: %w", manifest, err), s.dir.Trash(staged))
	}
	return path, s.dir.Trash(staged)
}

// assemble builds the rootfs in the directory staged, and its seal beside it.
func (s *Store) assemble(ctx context.Context, holder metadata.Holder, staged string, layers []metadata.Layer,
	opts *AssembleOptions, rec *metadata.Rootfs,
) error {
	fs := filepath.Join(staged, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return err
	}
	var copied []string
	defer func() {
		if err := s.dir.Trash(copied...); err != nil {
			log.G(ctx).WithError(err).Warn("a consumed layer could not be deleted")
		}
	}()
	lost := &nodes.LostXattrs{}
	seals, err := s.stackUp(ctx, holder, staged, layers, opts.Consume, &copied, lost)
	if err != nil {
		return err
	}
	all, err := tree.Flatten(ctx, seals)
	if err != nil {
		return err
	}
	if err := s.finishRoot(fs, &all.Root); err != nil {
		return err
	}
	lost.Warn(ctx, "rootfs "+rec.Manifest.String())
	rec.Size, rec.Inodes = all.Size, all.Inodes
	entries := lost.Without(all.Each(ctx))
	return tree.WriteSeal(filepath.Join(staged, "seal"), rec, all.Count, entries, !opts.NoSync)
}

// stackUp merges the layers with their fix-ups, lowest first, into staged/fs, and returns the seals of what it merged,
// which lie in staged or with their layers. What was consumed by copying is added to copied, for the caller to delete,
// and the extended attributes that copies lack to lost.
func (s *Store) stackUp(ctx context.Context, holder metadata.Holder, staged string, layers []metadata.Layer, consume bool,
	copied *[]string, lost *nodes.LostXattrs,
) ([]*tree.Seal, error) {
	last := map[string]int{}
	for i, l := range layers {
		last[l.Key] = i
	}
	sources, err := s.sources(ctx, holder, staged, layers, consume)
	for _, src := range sources {
		if src.drop {
			*copied = append(*copied, src.dir)
		}
	}
	if err == nil && !consume {
		err = s.settled(ctx, slices.ContainsFunc(layers, func(l metadata.Layer) bool { return !l.Durable }))
	}
	if err != nil {
		return nil, err
	}
	var seals []*tree.Seal
	for i, l := range layers {
		if i+1 < len(layers) && layers[i+1].Key == l.Key && !l.NeedsFixup {
			continue // merging the same layer twice in a row changes nothing
		}
		src := sources[l.Key]
		if src.seal == nil {
			if src.seal, err = tree.OpenSeal(ctx, filepath.Join(src.dir, "seal")); err != nil {
				return nil, err
			}
			sources[l.Key] = src
		}
		src.move = src.move && last[l.Key] == i
		if seals, err = s.stackOne(ctx, staged, l, src, seals, lost); err != nil {
			return nil, err
		}
	}
	return seals, nil
}

// stackOne merges one layer and its fix-up, and adds their seals.
func (s *Store) stackOne(ctx context.Context, staged string, l metadata.Layer, src layerSource,
	seals []*tree.Seal, lost *nodes.LostXattrs,
) ([]*tree.Seal, error) {
	fs := filepath.Join(staged, "fs")
	fixup, err := s.fixupFor(ctx, src, l, fs)
	if err != nil {
		return nil, err
	}
	if err := s.mergeSealed(ctx, fs, filepath.Join(src.dir, "fs"), src.seal, src.move, lost); err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	seals = append(seals, src.seal)
	if fixup == "" {
		return seals, nil
	}
	at := filepath.Join(staged, fmt.Sprintf("fixup-%d.seal", len(seals)))
	if err := s.dir.Rename(filepath.Join(fixup, "seal"), at); err != nil {
		return nil, err
	}
	sealed, err := tree.OpenSeal(ctx, at)
	if err == nil {
		err = s.mergeSealed(ctx, fs, filepath.Join(fixup, "fs"), sealed, true, lost)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: fix-up: %w", l.DiffID, err)
	}
	return append(seals, sealed), s.dir.Trash(fixup)
}

// mergeSealed merges a directory into fs, by moving what is in it or by copying.
func (s *Store) mergeSealed(ctx context.Context, fs, dir string, sealed *tree.Seal, move bool,
	lost *nodes.LostXattrs,
) (err error) {
	m := overlay.Merge{To: fs, Move: move, Lost: lost}
	if !move {
		m.Space, m.SharesExtents = diskspace.NewMeter(fs), s.clones()
	} else {
		if m.Marked, err = overlay.MarkedDirs(sealed.Each); err != nil {
			return err
		}
	}
	return s.merge(ctx, &m, dir)
}

// layerSource is where a layer is taken from.
type layerSource struct {
	dir  string
	seal *tree.Seal // nil until it was read
	move bool       // its inodes are moved, not copied
	drop bool       // it is deleted after it was copied
}

// sources returns the source of each layer. A layer that is consumed first loses its record. Then it is moved to staged
// or, if that is on another file system, aside in its own pool, to be copied and deleted.
func (s *Store) sources(ctx context.Context, holder metadata.Holder, staged string,
	layers []metadata.Layer, consume bool,
) (map[string]layerSource, error) {
	sources := map[string]layerSource{}
	var consumed []metadata.Layer
	for _, l := range layers {
		rec, err := s.layer(l.Key)
		if err == nil {
			rec, err = s.trustLayer(ctx, rec)
		}
		if err != nil {
			return nil, err
		}
		sources[l.Key] = layerSource{dir: s.path("layers", rec.Dir)}
	}
	if !consume {
		return sources, nil
	}
	defer s.dir.KeepSweepsAway()()
	err := s.db.Update(func(tx *metadata.Tx) error {
		for key := range sources {
			n := metadata.LayerNode(key)
			if hs := tx.Holders(n); len(hs) != 1 || hs[0] != holder {
				continue
			}
			rec, err := tx.Layer(key)
			if err != nil {
				return err
			}
			if err := tx.Release(holder, n); err != nil {
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
		src, err := s.consume(holder, staged, rec)
		if err != nil {
			return sources, err
		}
		if sources[rec.Key] = src; src.move || src.drop {
			s.replaced(metadata.LayerNode(rec.Key))
		}
	}
	return sources, nil
}

// consume takes the directory of a layer, which has lost its record, to staged. When that is on another file system
// or below another project quota, the directory is moved aside in its own, to be copied and deleted. When even that
// is impossible, because it was made before its pool got a quota, the layer gets its record back and is copied. The
// gate is held.
func (s *Store) consume(holder metadata.Holder, staged string, rec metadata.Layer) (layerSource, error) {
	from, to := s.path("layers", rec.Dir), filepath.Join(staged, "layer-"+rec.Dir)
	err := s.dir.Rename(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return layerSource{dir: to, move: true}, err
	}
	to = s.dir.StageBeside(from, "consumed")
	err = s.dir.Rename(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return layerSource{dir: to, drop: err == nil}, err
	}
	err = s.db.Update(func(tx *metadata.Tx) error {
		return errors.Join(tx.PutLayer(rec), tx.Hold(holder, metadata.LayerNode(rec.Key)))
	})
	return layerSource{dir: from}, err
}

// fixupFor makes what the layer needs above what is assembled so far; "" when nothing.
func (s *Store) fixupFor(ctx context.Context, src layerSource, l metadata.Layer, fs string) (staged string, err error) {
	if !l.NeedsFixup {
		return "", nil
	}
	p, err := s.openPlanOf(ctx, src.dir, l, []overlay.Dir{{Name: "rootfs", Path: fs}})
	if err != nil {
		return "", err
	}
	defer p.close()
	if p.Empty() {
		return "", nil
	}
	staged = s.dir.StageBeside(filepath.Dir(fs), "fixup")
	_, err = s.build(ctx, staged, p.Plan)
	return staged, err
}

// finishRoot gives the root directory the attributes that the layers say, or those of a directory nobody says anything of.
func (s *Store) finishRoot(fs string, root *unpack.Entry) error {
	if root.Implied && s.opts.Unpack.Unprivileged {
		root.UID, root.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	return setAttrs(fs, root)
}

// placeRootfs moves a finished rootfs into its place and records it. What lies there without a record is moved aside.
func (s *Store) placeRootfs(holder metadata.Holder, staged string, rec metadata.Rootfs) error {
	// A broken rootfs may still have its record, which says from now on that nobody knows what is there.
	n := metadata.RootfsNode(rec.Manifest)
	err := s.db.Update(func(tx *metadata.Tx) error {
		old, err := tx.Rootfs(rec.Manifest)
		if errdefs.IsNotFound(err) {
			return nil
		}
		old.Durable = false
		return errors.Join(err, tx.PutRootfs(old))
	})
	if err != nil {
		return err
	}
	err = s.dir.Place(rootdir.Entry{
		Kind: metadata.KindRootfs, Name: filepath.Join(rec.Manifest.Algorithm().String(), rec.Manifest.Encoded()),
		Staged: staged, Durable: rec.Durable,
	}, func(tx *metadata.Tx, _ string) (bool, error) {
		if err := tx.PutRootfs(rec); err != nil {
			return false, err
		}
		return true, tx.Hold(holder, n)
	})
	if err != nil {
		return err
	}
	s.replaced(n)
	if !rec.Durable {
		s.syncer.add(n, rootfsVersion(rec))
	}
	return nil
}
