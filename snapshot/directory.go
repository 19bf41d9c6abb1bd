package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// needsCopy reports whether a new snapshot gets a copy of all that its parent shows. It does in directory
// mode, with two exceptions: a snapshot into which containerd extracts a layer, because the content of
// that layer will be in overlay's form, and a view whose parent is shown by one directory alone.
func (s *Store) needsCopy(kind metadata.SnapshotKind, r Request, st *stack, remap bool) bool {
	switch {
	case !s.opts.Directory, r.Extraction, r.ParentChainID != "":
		return false
	case kind == metadata.View:
		return len(st.dirs) != 1 || st.viewRoot(remap) != ""
	}
	return true
}

// stageCopy copies what the snapshot parent shows into a new directory with a staged name. The copy
// shares no inode with a layer.
func (s *Store) stageCopy(ctx context.Context, parent string, st *stack) (string, error) {
	for {
		staged := s.dir.Stage(rootdir.Snapshots, "snapshot")
		err := s.layers.SyncForClones(ctx, st.provisional)
		if err == nil {
			err = s.dir.Build(staged, func() error {
				return s.layers.CopyStack(ctx, filepath.Join(staged, "fs"), st.dirs, &st.root)
			}, nil)
		}
		// A removal or a repair does not wait for copies, so it may have deleted a directory that was
		// being read. Names of directories are never used again. So if the stack is the same as before,
		// its directories existed during the whole copy.
		now, stackErr := s.stack(ctx, parent)
		same := stackErr == nil && slices.Equal(st.dirs, now.dirs)
		if err == nil && same {
			return staged, nil
		}
		if trashErr := s.dir.Trash(staged); same || stackErr != nil || trashErr != nil {
			return "", errors.Join(stackErr, err, trashErr)
		}
		st = now
	}
}
