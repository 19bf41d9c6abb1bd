package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/durable"
)

// AssembleOptions are the options of Assemble. nil means the zero value.
type AssembleOptions struct {
	// Consume lets Assemble move layers that only the holder holds, instead of copying them. Such a
	// layer loses its record first, and has to be unpacked from its blob if it is wanted again. For
	// roots that no containerd uses. false: layers are copied.
	Consume bool
	// NoSync leaves the rootfs provisional. false: Assemble returns when the rootfs is on the disk.
	NoSync bool
}

// Rootfs returns the path of the assembled rootfs of a manifest and lets holder hold it. It returns errdefs.ErrNotFound
// if there is none, or if it is in doubt and differs from its seal.
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
	path := s.at.rootfs(manifest)
	if s.doubts.Has(n) {
		if err := s.modes.compare(ctx, path, path+".seal"); ctx.Err() != nil {
			return "", fmt.Errorf("rootfs %s: %w", manifest, context.Cause(ctx))
		} else if err != nil {
			return "", fmt.Errorf("rootfs %s: %w: %w", manifest, err, errdefs.ErrNotFound)
		}
		s.trusted(n, durable.RootfsVersion(rec))
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("rootfs %s: directory: %w", manifest, errdefs.ErrNotFound)
	}
	if !holds && !s.opts.ReadOnly {
		err = s.db.Batch(func(tx *metadata.Tx) error { return tx.Hold(holder, n) })
	}
	return path, err
}

// Assemble builds the rootfs of a manifest from its layers, lowest first, and returns its path. holder
// must hold all the layers, and holds the rootfs afterwards. If there is an intact rootfs already,
// Assemble returns that one.
func (s *Store) Assemble(ctx context.Context, holder metadata.Holder, manifest digest.Digest,
	layers []metadata.Layer, opts *AssembleOptions,
) (string, error) {
	if opts == nil {
		opts = &AssembleOptions{}
	}
	defer s.readers.Begin()()
	defer s.locks.Lock("rootfs/" + manifest.String())()
	if path, err := s.Rootfs(ctx, holder, manifest); err == nil || !errdefs.IsNotFound(err) {
		return path, err
	}
	path := s.at.rootfs(manifest)
	if err := s.dir.MakeParent(path); err != nil {
		return "", fmt.Errorf("rootfs %s: %w", manifest, err)
	}
	staged := s.dir.StageBeside(path, "rootfs")
	rec := metadata.Rootfs{Manifest: manifest, Durable: !opts.NoSync, Created: time.Now().UTC()}
	a := assembly{s: s, holder: holder, staged: staged, layers: layers, opts: *opts}
	var sync func() error
	if !opts.NoSync {
		sync = func() error { return s.dir.Sync(rootdir.Layers, rootdir.Rootfs) }
	}
	err := s.dir.Build(staged, func() error { return a.run(ctx, &rec) }, sync)
	if err == nil {
		err = s.placeRootfs(holder, staged, rec)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("rootfs %s: %w", manifest, err), s.dir.Trash(staged))
	}
	return path, s.dir.Trash(staged)
}

// placeRootfs gives a finished rootfs its position and records it. What has the position without a record is deleted.
func (s *Store) placeRootfs(holder metadata.Holder, staged string, rec metadata.Rootfs) error {
	// A broken rootfs may still have its record. Mark it as provisional, so that it is compared if this
	// process ends before the new one is recorded.
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
		s.syncer.Add(n, durable.RootfsVersion(rec))
	}
	return nil
}
