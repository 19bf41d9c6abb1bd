package snapshot

import (
	"context"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
)

// Clone copies the tree from into the directory to, which must be missing or empty (errdefs.ErrFailedPrecondition), and
// shares no inode with it.
func Clone(ctx context.Context, from, to string) error {
	return errclass.Ensure(overlay.Clone(ctx, from, to))
}

// DiskUsage returns the bytes of disk blocks below a path of the root, as du does: each inode once, and blocks that
// files share on some file systems (reflinks) for each of them. A path that does not exist has none.
func DiskUsage(ctx context.Context, path string) (bytes int64, err error) {
	return nodes.DiskUsage(ctx, path)
}
