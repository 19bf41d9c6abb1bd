package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/internal/descriptors"
	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// whole says whether a new snapshot is to have a copy of all that its parent shows. An extraction never is: a layer that is
// applied to it takes its place, or what somebody else's differ writes in overlay's form. Nor is a view of what one
// directory shows already.
func (s *Store) whole(sn metadata.Snapshot, st *stack) bool {
	switch {
	case !s.opts.Directory, sn.Labels[snapshots.LabelSnapshotRef] != "", sn.Labels[labelParentChainID] != "", isExtraction(sn.Key):
		return false
	case sn.Kind == metadata.View:
		return len(st.dirs) != 1 || st.viewRoot(s.remaps(sn)) != ""
	}
	return true
}

// stageWhole copies what the snapshot parent shows into a new directory with a staged name. No inode of it is a
// layer's.
func (s *Store) stageWhole(ctx context.Context, parent string, st *stack) (string, error) {
	for {
		staged := s.dir.Stage(rootdir.Snapshots, "snapshot")
		err := s.settled(ctx, st.provisional)
		if err == nil {
			err = s.dir.Build(staged, func() error { return s.copyStack(ctx, staged, st) }, nil)
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

// copyStack puts what a stack shows into dir/fs, from the bottom up.
func (s *Store) copyStack(ctx context.Context, dir string, st *stack) error {
	fs := filepath.Join(dir, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return nodes.Classed(err)
	}
	lost := &nodes.LostXattrs{}
	for _, d := range slices.Backward(st.dirs) {
		m := overlay.Merge{Lost: lost, To: fs, Live: d.Live, Space: diskspace.NewMeter(fs), SharesExtents: s.clones()}
		if err := s.merge(ctx, &m, d.Path); err != nil {
			return fmt.Errorf("copy of %s: %w", d.Name, nodes.Classed(err))
		}
	}
	lost.Warn(ctx, "copy for a container")
	return setAttrs(fs, &st.root)
}

// settled waits until what was unpacked just now is on the disk, where a clone would force it out file by file: four times
// slower.
func (s *Store) settled(ctx context.Context, provisional bool) error {
	if !provisional || !s.clones() {
		return nil
	}
	return s.Sync(ctx)
}

func setAttrs(dir string, e *unpack.Entry) error {
	f, err := nodes.OpenTree(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unpack.SetAttrsOf(f, e)
}

// merge runs m over a directory.
func (s *Store) merge(ctx context.Context, m *overlay.Merge, dir string) error {
	share, release, err := descriptors.Process.Take(ctx, descriptors.Assembly)
	if err != nil {
		return err
	}
	defer release()
	m.Descriptors = share
	defer s.alone()()
	return m.Run(ctx, dir)
}

// alone keeps apart what reads the trees of an ordinary user: directories that their owner can't read are opened up meanwhile.
func (s *Store) alone() (done func()) {
	if os.Geteuid() == 0 {
		return func() {}
	}
	return s.locks.Lock("modes")
}
