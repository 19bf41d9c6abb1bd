package layer

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/tank-snapshotter/tank/internal/descriptors"
	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
)

// CopyStack copies what a stack shows, topmost directory first, into the new directory to, which gets the attributes
// root. The copy shares no inode with the stack. SyncForClones comes first.
func (s *Store) CopyStack(ctx context.Context, to string, stack []overlay.Dir, root *entry.Entry) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return nodes.Classed(err)
	}
	lost := &nodes.LostXattrs{}
	for _, d := range slices.Backward(stack) {
		m := overlay.Merge{Lost: lost, To: to, Live: d.Live, Space: diskspace.NewMeter(to), SharesExtents: s.clones()}
		if err := s.merge(ctx, &m, d.Path); err != nil {
			return fmt.Errorf("copy of %s: %w", d.Name, nodes.Classed(err))
		}
	}
	lost.Warn(ctx, "copy for a container")
	return nodes.SetAttrs(to, root)
}

// SyncForClones waits until provisional layers are on the disk, if files can be cloned: a clone would force them out
// file by file, which takes four times as long.
func (s *Store) SyncForClones(ctx context.Context, provisional bool) error {
	if !provisional || !s.clones() {
		return nil
	}
	return s.Sync(ctx)
}

// merge runs m over a directory.
func (s *Store) merge(ctx context.Context, m *overlay.Merge, dir string) error {
	share, release, err := descriptors.Process.Take(ctx, descriptors.Assembly)
	if err != nil {
		return err
	}
	defer release()
	m.Descriptors = share
	defer s.modes.exclusive()()
	return m.Run(ctx, dir)
}

// modes is a lock for the modes of files and directories.
type modes struct{ mu sync.Mutex }

// exclusive makes readers of trees wait for each other if the process has no rights of root: each of them changes the
// mode of directories that their owner can't read, for as long as it reads them.
func (m *modes) exclusive() (done func()) {
	if os.Geteuid() == 0 {
		return func() {}
	}
	m.mu.Lock()
	return m.mu.Unlock
}
