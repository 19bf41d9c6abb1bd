package snapshot

import (
	"context"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
)

// Clone copies the directory from into the directory to. The copy shares no inode with from. It returns
// errdefs.ErrFailedPrecondition if to exists and is not empty.
func Clone(ctx context.Context, from, to string) error {
	return errclass.Ensure(overlay.Clone(ctx, from, to))
}

// DiskUsage returns the bytes of disk blocks below a path, as du does: each inode counts once, and blocks that files
// share (reflinks) count for each of them. It returns 0 for a path that does not exist.
func DiskUsage(ctx context.Context, path string) (bytes int64, err error) {
	bytes, err = nodes.DiskUsage(ctx, path)
	return bytes, errclass.Ensure(err)
}
