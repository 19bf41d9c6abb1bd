package tank

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/rebuild"
	"github.com/tank-snapshotter/tank/internal/rootlock"
)

// Rebuilt is what Rebuild found.
type Rebuilt = rebuild.Found

// RebuiltHolder holds what Rebuild found without a known holder, so that nothing of it is collected before
// the holder is released.
const RebuiltHolder = rebuild.Holder

// Rebuild makes the database of a root again after it was lost or damaged: from what can still be read of
// it, and from the files and directories in the root. It collects nothing. An error or a crash at any time
// leaves the former database in its place; afterwards it stays as metadata.db.old. Files and directories
// for which no record can be made are moved below lost/.
//
// It returns errdefs.ErrUnavailable while another process owns the root, and the errors of Open for a
// directory that is no root.
func Rebuild(ctx context.Context, root string) (Rebuilt, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("root: %w", err)
	}
	lock, err := rootlock.Take(root, nil)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("root %s: %w", root, err)
	}
	found, err := rebuild.Run(ctx, root, lock)
	if err := errors.Join(err, lock.Close()); err != nil {
		return Rebuilt{}, fmt.Errorf("root %s: %w", root, err)
	}
	// Opening the root writes index.json, and shows that the root can be opened.
	t, err := Open(root, &Options{Existing: true})
	switch {
	case errdefs.IsUnavailable(err): // another process has opened it meanwhile
		return found, nil
	case err != nil:
		return found, err
	}
	return found, t.Close()
}
