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
	"github.com/tank-snapshotter/tank/snapshot/internal/replaced"
)

// Mend compares a layer or fix-up with its seal and, if they differ, gives it a new directory: it unpacks one of the
// blobs that have the layer's diff ID again, or builds the fix-up again. claimed are further blobs that may have the
// diff ID, because an image claims it. It returns errdefs.ErrDataLoss if no such blob is here or intact.
func (s *Store) Mend(ctx context.Context, key string, claimed []digest.Digest) error {
	defer s.locks.Lock("trust/" + key)()
	rec, err := s.Record(key)
	if err != nil {
		return err
	}
	if err = compareLayer(ctx, s, rec); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if rec, err = (mending{s}).rebuild(ctx, rec, claimed...); err != nil {
		return fmt.Errorf("layer %s: %w", key, err)
	}
	s.trusted(metadata.LayerNode(key), rec.Dir)
	return nil
}

// mending gives broken layers new directories.
type mending struct{ s *Store }

// rebuild gives a broken layer a new directory: it unpacks the layer's blob again, or builds a fix-up again from its
// layer and parent. Mounts that exist keep the old directory; later mounts use the new one.
func (m mending) rebuild(ctx context.Context, rec metadata.Layer, claimed ...digest.Digest) (metadata.Layer, error) {
	s := m.s
	if IsFixup(rec.Key) {
		return m.rebuildFixup(ctx, rec)
	}
	blobs := claimed
	if err := s.db.ViewPending(func(tx *metadata.Tx) error {
		blobs = append(tx.BlobsOf(rec.DiffID), claimed...)
		return nil
	}); err != nil {
		return rec, err
	}
	err := cause.Mark(fmt.Errorf("broken, and its blob is missing: %w", errdefs.ErrDataLoss), cause.Damaged, "")
	for _, b := range blobs {
		if _, here := s.blobs.Size(b); !here {
			continue
		}
		if err = m.rebuildFrom(ctx, &rec, b); err == nil || ctx.Err() != nil { // changes rec
			break
		}
	}
	return rec, err
}

// rebuildFrom extracts a blob and gives the layer the new directory. It updates rec.
func (m mending) rebuildFrom(ctx context.Context, rec *metadata.Layer, blob digest.Digest) error {
	s := m.s
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
	return m.swap(rec, got.dir, got.record)
}

// swap gives a layer's record the new directory staged, and updates rec. made has the fields of the record that depend
// on the new directory. The old directory stays as long as a container may have mounted it or this process reads it.
func (m mending) swap(rec *metadata.Layer, staged string, made metadata.Layer) error {
	s := m.s
	defer s.readers.Begin()() // so that nothing deletes the old directory before Place has returned
	var now metadata.Layer
	unused := ""
	err := s.dir.Place(rootdir.Entry{Kind: metadata.KindLayer, Staged: staged},
		func(tx *metadata.Tx, dir string) (bool, error) {
			var err error
			if now, err = tx.Layer(rec.Key); err != nil {
				return false, err
			}
			s.readers.Swap()
			switch kept, err := replaced.Keep(tx, now); {
			case err != nil:
				return false, err
			case !kept:
				unused = s.at.entry(now.Dir)
				s.readers.Drop(unused, func(path string) {
					if err := s.dir.Trash(path); err != nil {
						log.L.WithError(err).Warn("repair: the next sweep deletes the replaced directory")
					}
				})
			}
			now.Dir, now.Durable, now.PlainMarks, now.DroppedXattrs = dir, false, made.PlainMarks, made.DroppedXattrs
			now.NeedsFixup, now.Ordered = made.NeedsFixup, made.Ordered
			return true, tx.PutLayer(now)
		})
	if err != nil {
		s.readers.Keep(unused)
		return err
	}
	*rec = now
	return nil
}

// rebuildFixup builds a broken fix-up again.
func (m mending) rebuildFixup(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	s := m.s
	if s.opts.Rebuild == nil {
		return rec, cause.Mark(fmt.Errorf("broken: %w", errdefs.ErrDataLoss), cause.Damaged, "")
	}
	b, err := s.opts.Rebuild(ctx, rec.Key)
	if err != nil {
		return rec, err
	}
	err = m.swap(&rec, b.staged, b.record) // changes rec
	return rec, err
}
