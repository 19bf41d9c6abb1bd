package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
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

// stageCopy copies what the parent of sn shows into the directory of sn. The copy shares no inode with a layer.
func (n *Snapshotter) stageCopy(ctx context.Context, sn metadata.Snapshot, st *stack) (staged, error) {
	for {
		err := n.s.layers.SyncForClones(ctx, st.provisional)
		var copied staged
		if err == nil {
			copied, err = n.stage(sn, true, func(dir string) error {
				fs := filepath.Join(dir, "fs")
				if err := n.s.layers.CopyStack(ctx, fs, st.dirs, &st.root); err != nil {
					return err
				}
				return n.s.syncTree(ctx, fs)
			})
		}
		// A removal or a repair does not wait for copies, so it may have deleted a directory that was
		// being read. Names of directories are never used again. So if the stack is the same as before,
		// its directories existed during the whole copy.
		now, stackErr := n.s.stack(ctx, sn.Parent)
		same := stackErr == nil && slices.Equal(st.dirs, now.dirs)
		switch {
		case err == nil && same:
			return copied, nil
		case err == nil:
			err = n.s.dir.Trash(copied.path)
		case !same && stackErr == nil:
			err = nil // the copy failed because a directory was deleted
		}
		if err = errors.Join(stackErr, err); err != nil {
			return copied, err
		}
		st = now
	}
}

// syncTree forces a tree in snapshots/ to the disk, together with the sync of the snapshot's durable record.
func (s *Store) syncTree(ctx context.Context, path string) error {
	return s.dir.SyncTree(rootdir.Snapshots, path, func() error { return nodes.WriteBack(ctx, path) })
}
