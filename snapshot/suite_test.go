package snapshot_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
)

// TestSnapshotterSuite runs containerd's conformance suite in both modes. The suite knows by the snapshotter's name
// what to skip: for "overlayfs", the rename of a directory of a lower layer; for "native", nothing.
func TestSnapshotterSuite(t *testing.T) {
	requireMounts(t)
	t.Run("overlay", func(t *testing.T) {
		testsuite.SnapshotterSuite(t, "overlayfs", openSuite(&snapshot.Options{Unpack: rights()}))
	})
	t.Run("directory", func(t *testing.T) {
		testsuite.SnapshotterSuite(t, "native", openSuite(&snapshot.Options{Unpack: rights(), Directory: true}))
	})
}

func openSuite(opts *snapshot.Options) testsuite.SnapshotterFunc {
	return func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
		if err != nil {
			return nil, nil, err
		}
		blobs, err := content.Open(root, db, nil)
		if err != nil {
			return nil, nil, err
		}
		s, err := snapshot.Open(root, db, blobs, opts)
		if err != nil {
			return nil, nil, err
		}
		closeAll := func() error {
			var faults []error
			report := func(f metadata.Fault) { faults = append(faults, f) }
			err := errors.Join(s.Check(context.Background(), report), db.Check(report))
			return errors.Join(append(faults, err, s.Close(), blobs.Close(), db.Close())...)
		}
		return s.For(metadata.Containerd), closeAll, nil
	}
}
