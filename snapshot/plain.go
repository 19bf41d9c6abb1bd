package snapshot

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/metadata"
)

// servable returns a layer that can be served: it is intact and, in overlay mode, overlay understands its whiteouts. If
// it was unpacked on a file system without overlay's whiteouts, it is unpacked again here; that succeeds when the root
// has since been copied to another file system.
func (s *Store) servable(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	rec, err := s.trustLayer(ctx, rec)
	if err != nil || !rec.PlainMarks || s.opts.Directory {
		return rec, err
	}
	defer s.locks.Lock("trust/" + rec.Key)()
	if rec, err = s.layer(rec.Key); err != nil || !rec.PlainMarks {
		return rec, err
	}
	if rec, err = s.unpackAgain(ctx, rec); err != nil {
		return rec, fmt.Errorf("layer %s: %w", rec.Key, err)
	}
	if rec.PlainMarks {
		const text = "layer %s: this file system has no whiteouts for overlay to show: %w"
		return rec, cause.Mark(fmt.Errorf(text, rec.Key, errdefs.ErrFailedPrecondition), cause.FileSystem, "")
	}
	s.trusted(metadata.LayerNode(rec.Key), rec.Dir)
	return rec, nil
}
