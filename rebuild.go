package tank

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/rebuild"
	"github.com/tank-snapshotter/tank/internal/rootlock"
)

// Rebuilt is what Rebuild found.
type Rebuilt = rebuild.Found

// RebuildOptions are the options of Rebuild.
type RebuildOptions = rebuild.Options

// Rebuild makes the database of a root again after it was lost or damaged: from what can still be read of
// it, and from the files and directories in the root. It collects nothing. An error or a crash at any time
// leaves the former database in its place; afterwards it stays as metadata.db.old. Files and directories
// for which no record can be made are moved below lost/. opts may be nil.
//
// It returns errdefs.ErrUnavailable while another process owns the root, the errors of Open for a
// directory that is no root, and errdefs.ErrFailedPrecondition where RebuildOptions.Unattended forbids it.
func Rebuild(ctx context.Context, root string, opts *RebuildOptions) (Rebuilt, error) {
	opts = cmp.Or(opts, &RebuildOptions{})
	root, err := filepath.Abs(root)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("root: %w", err)
	}
	lock, err := rootlock.Take(root, &rootlock.Options{FS: opts.FS})
	if err != nil {
		return Rebuilt{}, fmt.Errorf("root %s: %w", root, err)
	}
	found, err := rebuild.Run(ctx, root, lock, opts)
	if err := errors.Join(err, lock.Close()); err != nil {
		return Rebuilt{}, errclass.Ensure(fmt.Errorf("root %s: %w", root, err))
	}
	// Opening the root writes index.json, and shows that the root can be opened.
	t, err := Open(root, &Options{Existing: true, FS: opts.FS})
	switch {
	case errdefs.IsUnavailable(err): // another process has opened it meanwhile
		return found, nil
	case err != nil:
		return found, err
	}
	return found, t.Close()
}
