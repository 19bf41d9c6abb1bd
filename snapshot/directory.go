package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// needsCopy reports whether a new snapshot gets a copy of all that its parent shows: in directory mode,
// unless containerd extracts a layer into it, whose content will be in overlay's form, or it is a view
// and one directory of the stack shows all of it.
func (s *Store) needsCopy(sn metadata.Snapshot, st *stack, remap bool) bool {
	r := requestOf(sn.Key, sn.Labels)
	switch {
	case !s.opts.Directory, r.extraction, r.parentChain != "":
		return false
	case sn.Kind == metadata.View:
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
		// A removal or a repair may have deleted what was being read: neither waits for a copy. Names
		// of directories are never used again. So if the stack is the same as before, it was there all
		// the time.
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
