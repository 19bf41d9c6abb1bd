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

// TestSnapshotterSuite runs containerd's conformance suite. It is called overlayfs because the suite knows by that name
// that a directory of a lower layer can't be renamed.
func TestSnapshotterSuite(t *testing.T) {
	requireMounts(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
		if err != nil {
			return nil, nil, err
		}
		blobs, err := content.Open(root, db, nil)
		if err != nil {
			return nil, nil, err
		}
		s, err := snapshot.Open(root, db, blobs, &snapshot.Options{Unpack: rights()})
		if err != nil {
			return nil, nil, err
		}
		closeAll := func() error {
			var faults []error
			report := func(err error) { faults = append(faults, err) }
			err := errors.Join(s.Check(context.Background(), report), db.Check(report))
			return errors.Join(append(faults, err, s.Close(), blobs.Close(), db.Close())...)
		}
		return s.For(metadata.Containerd), closeAll, nil
	})
}
