package layer

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// rebuild gives a broken layer a new directory: it unpacks the layer's blob again, or builds a fix-up again from its
// layer and parent. Mounts that exist keep the old directory; later mounts use the new one.
func (s *Store) rebuild(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	if isFixup(rec.Key) {
		return s.rebuildFixup(ctx, rec)
	}
	var blobs []digest.Digest
	if err := s.db.View(func(tx *metadata.Tx) error { blobs = tx.BlobsOf(rec.DiffID); return nil }); err != nil {
		return rec, err
	}
	for _, b := range blobs {
		if _, here := s.blobs.Size(b); !here {
			continue
		}
		err := s.rebuildFrom(ctx, &rec, b) // changes rec
		return rec, err
	}
	return rec, cause.Mark(fmt.Errorf("broken, and its blob is missing: %w", errdefs.ErrDataLoss), cause.Damaged, "")
}

// rebuildFrom extracts a blob and gives the layer the new directory. It updates rec.
func (s *Store) rebuildFrom(ctx context.Context, rec *metadata.Layer, blob digest.Digest) error {
	var got unpacked
	defer func() {
		if got.dir != "" {
			if err := s.dir.Trash(got.dir); err != nil {
				log.G(ctx).WithError(err).Warn("repair: an unfinished directory could not be deleted")
			}
		}
	}()
	// The values of ctx decide which holder's blobs can be read. They are left out, because the layer serves
	// all holders and it does not matter which of them has the blob.
	reading, cancel := s.work.Bind(context.Background())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	if err := s.unpacks.observed(reading, request{pair: Pair{Blob: ocispec.Descriptor{Digest: blob}}},
		&got); err != nil {
		return err
	}
	if got.diffID != rec.DiffID {
		return fmt.Errorf("blob %s has diff ID %s now: %w", blob, got.diffID, errdefs.ErrDataLoss)
	}
	return s.swap(rec, got.dir, got.record)
}

// swap gives a layer's record the new directory staged, updates rec, and deletes the old directory. made has the fields
// of the record that depend on the new directory.
func (s *Store) swap(rec *metadata.Layer, staged string, made metadata.Layer) error {
	old := rec.Dir
	var now metadata.Layer
	err := s.dir.Place(rootdir.Entry{Kind: metadata.KindLayer, Staged: staged},
		func(tx *metadata.Tx, dir string) (bool, error) {
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
	return s.dir.Trash(s.at.entry(old))
}

// rebuildFixup builds a broken fix-up again.
func (s *Store) rebuildFixup(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	if s.opts.Rebuild == nil {
		return rec, cause.Mark(fmt.Errorf("broken: %w", errdefs.ErrDataLoss), cause.Damaged, "")
	}
	b, err := s.opts.Rebuild(ctx, rec.Key)
	if err != nil {
		return rec, err
	}
	return rec, s.swap(&rec, b.staged, b.record)
}
