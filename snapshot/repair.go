package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// suspect says whether another process left the record provisional and nobody has compared it yet.
func (s *Store) suspect(n metadata.Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.suspects[n]
	return ok
}

// Doubt has the rootfs of a manifest and the layers with these diff IDs compared with their seals before they are
// served again, although this process may have made them.
func (s *Store) Doubt(manifest digest.Digest, diffIDs []digest.Digest) error {
	var nodes []metadata.Node
	if err := s.db.View(func(tx *metadata.Tx) error {
		if _, err := tx.Rootfs(manifest); err == nil {
			nodes = append(nodes, metadata.RootfsNode(manifest))
		}
		for _, d := range diffIDs {
			if l, err := tx.Layer(metadata.LayerKey(d)); err == nil {
				nodes = append(nodes, metadata.LayerNode(l.Key))
			}
		}
		return nil
	}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		s.suspects[n] = struct{}{}
	}
	return nil
}

// CompareAll compares in the background what another process left provisional, so that a Prepare need not wait for it.
func (s *Store) CompareAll() {
	s.mu.Lock()
	suspects := slices.Collect(maps.Keys(s.suspects))
	s.mu.Unlock()
	if len(suspects) == 0 {
		return
	}
	s.work.Go("comparison", func(ctx context.Context) error {
		var errs []error
		for _, n := range suspects {
			if ctx.Err() != nil || n.Kind != metadata.KindLayer {
				continue
			}
			rec, err := s.layer(n.Key)
			if err == nil {
				_, err = s.trustLayer(ctx, rec)
			}
			if !errdefs.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// trusted says that the node was found to be what its seal says. Nothing says yet that it is on the disk.
func (s *Store) trusted(n metadata.Node, version string) {
	s.mu.Lock()
	delete(s.suspects, n)
	s.mu.Unlock()
	if s.opts.ReadOnly {
		return
	}
	s.syncer.add(n, version)
	s.settleSoon()
}

// replaced says that the node is not what it was: it is gone, or durable from the start.
func (s *Store) replaced(n metadata.Node) {
	s.mu.Lock()
	delete(s.suspects, n)
	s.mu.Unlock()
	s.syncer.mu.Lock()
	delete(s.syncer.pending, n)
	s.syncer.mu.Unlock()
}

// trustLayer compares a suspect layer with its seal before it is served, and unpacks it again when it differs. It
// returns the record as it is then. errdefs.ErrDataLoss when the layer is broken and its blob is not here.
func (s *Store) trustLayer(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	n := metadata.LayerNode(rec.Key)
	if !s.suspect(n) {
		return rec, nil
	}
	defer s.locks.Lock("trust/" + rec.Key)()
	if !s.suspect(n) {
		return s.layer(rec.Key) // another call was quicker
	}
	err := s.intact(ctx, s.path("layers", rec.Dir, "fs"), s.path("layers", rec.Dir, "seal"))
	if err == nil && rec.Ordered {
		err = tree.CheckOrder(ctx, s.path("layers", rec.Dir))
	}
	if errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("layer", rec.Key).Warn("layer was not written out before the last stop: unpacking it again")
		rec, err = s.unpackAgain(ctx, rec)
	}
	if err != nil {
		return rec, fmt.Errorf("layer %s: %w", rec.Key, err)
	}
	s.trusted(n, rec.Dir)
	return rec, nil
}

func (s *Store) layer(key string) (rec metadata.Layer, err error) {
	err = s.db.ViewPending(func(tx *metadata.Tx) error {
		rec, err = tx.Layer(key)
		return err
	})
	return rec, err
}

// intact compares a directory with its seal; errdefs.ErrDataLoss names the first difference.
func (s *Store) intact(ctx context.Context, dir, seal string) error {
	defer s.alone()()
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

// unpackAgain makes a broken layer's directory anew from its blob and puts it into the record; mounts that are made
// later use it. A fix-up is made anew from the layer and the parent it belongs to.
func (s *Store) unpackAgain(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	if strings.HasPrefix(rec.Key, "fixup/") {
		return s.fixAgain(ctx, rec)
	}
	var blobs []digest.Digest
	if err := s.db.View(func(tx *metadata.Tx) error { blobs = tx.BlobsOf(rec.DiffID); return nil }); err != nil {
		return rec, err
	}
	for _, b := range blobs {
		if _, here := s.blobs.Size(b); !here {
			continue
		}
		if _, err := s.repair(ctx, &rec, b); err != nil {
			return rec, err
		}
		return rec, nil
	}
	return rec, cause.Mark(fmt.Errorf("broken, and its blob is not here: %w", errdefs.ErrDataLoss), cause.Damaged, "")
}

// repair extracts the blob once more and gives the layer the new directory.
func (s *Store) repair(ctx context.Context, rec *metadata.Layer, blob digest.Digest) (metadata.Layer, error) {
	j := &unpackJob{layer: Layer{Blob: ocispec.Descriptor{Digest: blob}}}
	defer func() {
		if j.dir != "" {
			if err := s.dir.Trash(j.dir); err != nil {
				log.G(ctx).WithError(err).Warn("repair: an unfinished directory could not be deleted")
			}
		}
	}()
	// The layer is everybody's, and whoever has the blob will do: the call's values stay behind.
	reading, cancel := s.work.Bind(context.Background())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	if err := s.unpack(reading, j); err != nil {
		return *rec, err
	}
	if j.diffID != rec.DiffID {
		return *rec, fmt.Errorf("blob %s has diff ID %s now: %w", blob, j.diffID, errdefs.ErrDataLoss)
	}
	return *rec, s.swap(rec, j.dir, j.record)
}

// swap gives a layer's record the new directory staged, and deletes the old one. made is what is known of the new one.
func (s *Store) swap(rec *metadata.Layer, staged string, made metadata.Layer) error {
	old := rec.Dir
	var now metadata.Layer
	err := s.dir.Place(rootdir.Entry{Kind: metadata.KindLayer, Staged: staged}, func(tx *metadata.Tx, dir string) (bool, error) {
		var err error
		if now, err = tx.Layer(rec.Key); err != nil {
			return false, err
		}
		now.Dir, now.Durable, now.PlainMarks, now.DroppedXattrs = dir, false, made.PlainMarks, made.DroppedXattrs
		now.NeedsFixup, now.Ordered = made.NeedsFixup, made.Ordered
		return true, tx.PutLayer(now)
	})
	if err != nil {
		return err
	}
	*rec = now
	return s.dir.Trash(s.path("layers", old))
}

// fixAgain makes a broken fix-up anew for a snapshot that stands on it.
func (s *Store) fixAgain(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	sn, err := s.standsOn(rec.Key)
	if err != nil {
		return rec, err
	}
	staged, made, err := s.stageFixup(ctx, sn, rec.Key)
	if err != nil {
		return rec, err
	}
	return rec, s.swap(&rec, staged, made)
}

// standsOn finds the snapshot with the shortest chain that stands on a fix-up. None of its ancestors does: their stack
// can be looked at while the fix-up is broken.
func (s *Store) standsOn(fixup string) (sn metadata.Snapshot, err error) {
	var keys []string
	if err := s.db.View(func(tx *metadata.Tx) error {
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
