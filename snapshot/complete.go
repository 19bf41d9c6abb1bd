package snapshot

import (
	"context"
	"github.com/tank-snapshotter/tank/internal/interrupt"
	"io"
)

// complete returns when the whole blob is here. Until then an extraction waits for somebody's registry, and must not
// keep others from memory that only one may have.
func (s *Store) complete(ctx context.Context, j *unpackJob) error {
	if _, here := s.blobs.Size(j.layer.Blob.Digest); here {
		return nil
	}
	blob, err := s.blobs.Open(ctx, j.layer.Blob.Digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	defer context.AfterFunc(ctx, func() { blob.Close() })()
	return interrupt.Copy(ctx, io.Discard, blob)
}
