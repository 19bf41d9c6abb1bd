package layer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// Decode turns a blob of a media type that the store does not read into a stream of another media type, and returns
// that type and the stream. Closing the stream closes the blob. After an error the blob is closed.
type Decode func(ctx context.Context, mediaType string, blob io.ReadCloser) (string, io.ReadCloser, error)

// ClaimDecoded is like Claim for a blob that has to be decoded, such as an encrypted layer. It decodes for every call:
// one caller may be allowed to decode what another is not, so the blob's diff ID and work in progress are not shared. A
// layer that is here already is not extracted again. What was extracted is on the disk when ClaimDecoded returns,
// because it can't be unpacked again without the caller. See docs/adr/0030-stream-processors.md.
func (s *Store) ClaimDecoded(ctx context.Context, l Pair, decode Decode,
	hold func(*metadata.Tx, metadata.Layer) error,
) (rec metadata.Layer, err error) {
	if err := s.Fits([]Pair{l}); err != nil {
		return rec, err
	}
	for {
		j := s.unpacks.once(ctx, request{pair: l, decode: decode})
		if j.err != nil {
			return rec, j.err
		}
		if err := s.mend(ctx, j); err != nil {
			if j.take() {
				err = errors.Join(err, s.dir.Trash(j.dir))
			} else if errdefs.IsDataLoss(err) && l.DiffID != "" {
				l.DiffID = "" // the bytes were only hashed: extract
				continue
			}
			return rec, err
		}
		rec, ok, err := s.place(j, hold)
		if err != nil {
			return rec, err
		}
		if ok {
			return rec, s.Sync(ctx)
		}
		l.DiffID = "" // the layer was removed meanwhile, or was another one: extract
	}
}

// mend compares the layer with the job's diff ID, if there is one and it is in doubt. If it is broken, it gets the
// directory of the job.
func (s *Store) mend(ctx context.Context, j *job) error {
	rec, err := s.Record(metadata.LayerKey(j.diffID))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = s.intact(ctx, rec)
	if !errdefs.IsDataLoss(err) || !j.take() {
		return err
	}
	if err := (mending{s}).swap(&rec, j.dir, j.record); err != nil {
		return fmt.Errorf("layer %s: %w", rec.Key, err)
	}
	s.trusted(metadata.LayerNode(rec.Key), rec.Dir)
	return nil
}
