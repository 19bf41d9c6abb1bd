package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// whole says whether a new snapshot is to have a copy of all that its parent shows. An extraction never is: a layer that is
// applied to it takes its place, or what somebody else's differ writes in overlay's form. Nor is a view of what one
// directory shows already.
func (s *Store) whole(sn metadata.Snapshot, st *stack, remap bool) bool {
	r := requestOf(sn.Key, sn.Labels)
	switch {
	case !s.opts.Directory, r.extraction, r.parentChain != "":
		return false
	case sn.Kind == metadata.View:
		return len(st.dirs) != 1 || st.viewRoot(remap) != ""
	}
	return true
}

// stageWhole copies what the snapshot parent shows into a new directory with a staged name. No inode of it is a
// layer's.
func (s *Store) stageWhole(ctx context.Context, parent string, st *stack) (string, error) {
	for {
		staged := s.dir.Stage(rootdir.Snapshots, "snapshot")
		err := s.layers.SyncForClones(ctx, st.provisional)
		if err == nil {
			err = s.dir.Build(staged, func() error {
				return s.layers.CopyStack(ctx, filepath.Join(staged, "fs"), st.dirs, &st.root)
			}, nil)
		}
		// What was read may have been on its way to be deleted: neither a removal nor a repair waits for who copies. Names of
		// directories never come again, so that a stack that is still the same was there all the time.
		now, gone := s.stack(ctx, parent)
		same := gone == nil && slices.Equal(st.dirs, now.dirs)
		if err == nil && same {
			return staged, nil
		}
		if trashed := s.dir.Trash(staged); same || gone != nil || trashed != nil {
			return "", errors.Join(gone, err, trashed)
		}
		st = now
	}
}
