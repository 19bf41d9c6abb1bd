package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// Apply lets the snapshot with these mounts stand on the layer desc, which it unpacks if it is not known, and returns
// the diff ID as a descriptor. It returns errdefs.ErrNotImplemented, so that containerd asks another differ, if the
// mounts are not this store's or the snapshot has content already.
func (s *Store) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
	return s.ApplyDecoded(ctx, desc, mounts, nil)
}

// ApplyDecoded is like Apply for a layer whose blob has a media type that the store does not read.
// decode reads it; nil: there is no decoder.
func (s *Store) ApplyDecoded(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, decode layer.Decode) (
	ocispec.Descriptor, error,
) {
	if decode == nil && !decompress.Supported(desc.MediaType) {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s: %v: %w",
			desc.Digest, mediatype.NotRootfs(desc.MediaType), errdefs.ErrNotImplemented)
	}
	path := writtenPath(mounts)
	lower := s.layers.IsLower(path)
	dir, ok := s.ownDir(path)
	if !ok && !lower {
		return ocispec.Descriptor{}, fmt.Errorf("apply: mounts of another snapshotter: %w", errdefs.ErrNotImplemented)
	}
	if err := s.access(ctx, desc.Digest); err != nil {
		return ocispec.Descriptor{}, err
	}
	if lower && decode == nil {
		return s.applyStaged(ctx, desc, path)
	}
	s.mu.Lock()
	key, ok := s.dirs[dir]
	s.mu.Unlock()
	if !ok {
		return ocispec.Descriptor{}, fmt.Errorf("apply: directory %s: no snapshot has it: %w", dir, errdefs.ErrNotFound)
	}
	sn, err := s.snapshot(key)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if sn.FullCopy {
		return ocispec.Descriptor{},
			fmt.Errorf("snapshot %s: apply: it is a copy in directory mode: %w", key, errdefs.ErrNotImplemented)
	}
	if pristine, err := s.pristine(dir); err != nil {
		return ocispec.Descriptor{}, err
	} else if !pristine {
		return ocispec.Descriptor{},
			fmt.Errorf("snapshot %s: apply: its directory is not empty: %w", key, errdefs.ErrNotImplemented)
	}
	var rec metadata.Layer
	if decode == nil {
		rec, err = s.layers.Claim(ctx, layer.Pair{Blob: desc}, s.attach(key))
	} else {
		expected := digestOf(recordedRequest(sn).DiffID)
		rec, err = s.layers.ClaimDecoded(ctx, layer.Pair{Blob: desc, DiffID: expected}, decode, s.attach(key))
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	s.records.Note(ctx, key, record.Eventually)
	if text := layer.DroppedXattrs(rec); text != "" {
		log.G(ctx).Warn(text)
	}
	return applied(rec), nil
}

// attach returns a function that records in a transaction that a layer was applied to the active snapshot key.
func (s *Store) attach(key string) func(*metadata.Tx, metadata.Layer) error {
	return func(tx *metadata.Tx, rec metadata.Layer) error {
		sn, err := tx.Snapshot(key)
		if err != nil {
			return err
		}
		if sn.Kind != metadata.Active {
			return fmt.Errorf("snapshot %s: not active: %w", key, errdefs.ErrFailedPrecondition)
		}
		if sn.Layer != "" && sn.Layer != rec.Key {
			return fmt.Errorf("snapshot %s: another layer was applied: %w", key, errdefs.ErrNotImplemented)
		}
		sn.Layer = rec.Key
		if err := tx.PutSnapshot(sn); err != nil {
			return err
		}
		return tx.Hold(metadata.SnapshotHolder(key), metadata.LayerNode(rec.Key))
	}
}

// access returns errdefs.ErrNotFound if the caller may not read a blob. Its layer may be known nevertheless.
func (s *Store) access(ctx context.Context, blob digest.Digest) error {
	switch {
	case s.opts.SkipKnownBlobs:
		return nil
	case s.opts.Access != nil:
		return s.opts.Access(ctx, blob)
	}
	if _, here := s.blobs.Size(blob); !here {
		return fmt.Errorf("blob %s: %w", blob, errdefs.ErrNotFound)
	}
	return nil
}

func applied(rec metadata.Layer) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: rec.DiffID, Size: rec.Size}
}

// applyStaged handles containerd 2.3, which applies a layer although a read-only mount means that it is applied.
func (s *Store) applyStaged(ctx context.Context, desc ocispec.Descriptor, lower string) (ocispec.Descriptor, error) {
	rec, err := s.layers.Claim(ctx, layer.Pair{Blob: desc}, func(_ *metadata.Tx, rec metadata.Layer) error {
		if s.layers.Lower(rec).Path != lower {
			return fmt.Errorf("layer %s: the snapshot stands on another layer: %w", desc.Digest,
				errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return applied(rec), nil
}

// writtenPath returns the path that mounts write to or, if they are read-only, show; "" if there is no such path.
func writtenPath(mounts []mount.Mount) (path string) {
	if len(mounts) != 1 {
		return ""
	}
	switch m := mounts[0]; m.Type {
	case "bind":
		path = m.Source
	case "overlay":
		for _, o := range m.Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				path = upper
			}
		}
	}
	return path
}

// ownDir returns the name below snapshots/ of the directory that a mount has as its path. It compares
// text, and resolves no path.
func (s *Store) ownDir(path string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(path, s.path("snapshots")+"/")
	name, tail, _ := strings.Cut(rest, "/")
	return name, ok && tail == "fs" && filepath.IsLocal(name)
}

func (s *Store) pristine(dir string) (bool, error) {
	f, err := nodes.OpenTree(s.path("snapshots", dir, "fs"))
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return len(names) == 0, ignoreEOF(err)
}

// prepareKnown handles the extraction of a layer that is already unpacked. If containerd would otherwise download the
// blob, it answers so that containerd skips download and apply. If the blob is here, it reports a miss, because then
// containerd should take the blob into its records (docs/adr/0004-known-layers-are-adopted.md). Every mismatch is a
// miss, not an error. done reports that m and err are the answer.
func (n *Snapshotter) prepareKnown(ctx context.Context, r Request) (m []mount.Mount, done bool, err error) {
	rec, ok := n.s.expected(ctx, r)
	if !ok {
		return nil, false, nil
	}
	if r.ParentChainID != "" && r.Parent == "" {
		m, err = n.createStaged(ctx, r, rec)
		if errdefs.IsNotFound(err) {
			return nil, false, nil
		}
		if err == nil {
			n.s.layers.Hit(ctx, rec, 0)
		}
		return m, err == nil, err
	}
	if err := n.s.valid(ctx, metadata.Snapshot{Layer: rec.Key}, r.Parent); errors.Is(err, stream.ErrInvalidLayer) {
		return nil, false, fmt.Errorf("snapshot %s: %w", r.Key, err)
	}
	done, err = n.commitKnown(r, rec)
	if err != nil || !done {
		return nil, false, err
	}
	n.s.layers.Hit(ctx, rec, 0)
	return nil, true, fmt.Errorf("snapshot %s: target %s: %w", r.Key, r.Target, errdefs.ErrAlreadyExists)
}

// expected returns the known layer that an extraction asks for. It reports false if the blob is to be adopted, or if
// this root has not verified that the blob has the diff ID: labels may come from the image and are not to be trusted.
func (s *Store) expected(ctx context.Context, r Request) (rec metadata.Layer, ok bool) {
	if r.Blob == "" {
		return rec, false
	}
	key := ""
	err := s.db.ViewPending(func(tx *metadata.Tx) error {
		diffID := tx.Verified(r.Blob)
		if diffID == "" || !r.expects(diffID) {
			return errdefs.ErrNotFound
		}
		key = metadata.LayerKey(diffID)
		return nil
	})
	if err != nil || s.adoptable(ctx, r.Blob) {
		return rec, false
	}
	rec, err = s.layers.Intact(ctx, key)
	return rec, err == nil
}

func (s *Store) adoptable(ctx context.Context, blob digest.Digest) bool {
	if s.opts.Adoptable != nil {
		return s.opts.Adoptable(ctx, blob)
	}
	_, here := s.blobs.Size(blob)
	return here
}

// createStaged makes an active snapshot that stands on a known layer and has no directory.
func (n *Snapshotter) createStaged(ctx context.Context, r Request, rec metadata.Layer) ([]mount.Mount, error) {
	now := time.Now().UTC()
	sn := metadata.Snapshot{
		Key: r.Key, Kind: metadata.Active, Labels: r.Labels, Layer: rec.Key, Created: now, Updated: now,
	}
	st, err := n.stageRecord(sn)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", sn.Key, err)
	}
	if sn, err = n.put(sn, st, nil); err != nil {
		return nil, err
	}
	return n.s.stagedMounts(ctx, sn)
}

// commitKnown commits the snapshot that containerd looks for after ErrAlreadyExists, unless there is one: its label
// snapshot.ref is the target, and it has the parent that containerd asked for. It reports false if the layer or the
// parent is gone.
func (n *Snapshotter) commitKnown(r Request, rec metadata.Layer) (done bool, err error) {
	now := time.Now().UTC()
	sn := metadata.Snapshot{
		Key: r.Key, Kind: metadata.Committed, Parent: r.Parent, Labels: r.Labels, Layer: rec.Key,
		Created: now, Updated: now, Size: rec.Size, Inodes: rec.Inodes,
	}
	if !rec.NeedsFixup {
		sn.Fixup = metadata.NoFixup
	}
	st, err := n.stageRecord(sn)
	if err != nil {
		return false, fmt.Errorf("snapshot %s: %w", sn.Key, err)
	}
	_, err = n.put(sn, st, func(tx *metadata.Tx) bool {
		return !slices.ContainsFunc(tx.Children(r.Parent, -1), func(child string) bool {
			c, err := n.held(tx, child)
			return err == nil && c.Kind == metadata.Committed && targetOf(c.Labels) == r.Target
		})
	})
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return false, nil // the layer or the parent was removed meanwhile
	}
	if err == nil && sn.Fixup == "" {
		n.s.work.Go("fix-up", func(ctx context.Context) error {
			_, err := n.s.stack(ctx, r.Key)
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		})
	}
	return err == nil, err
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
