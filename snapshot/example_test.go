package snapshot_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// A holder prepares a snapshot, receives mounts for it, and commits it, so that it can be the parent of others. Another
// holder does not see it.
func Example() {
	ctx := context.Background()
	root, err := os.MkdirTemp("", "tank")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	s, err := snapshot.Open(root, db, nil, &snapshot.Options{Unpack: unpack.Options{Unprivileged: os.Geteuid() != 0}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	snapshotter := s.For("example")
	mounts, err := snapshotter.Prepare(ctx, "work", "")
	fmt.Println(len(mounts), "mount of type", mounts[0].Type, err)
	fmt.Println(snapshotter.Commit(ctx, "base", "work"))
	info, err := snapshotter.Stat(ctx, "base")
	fmt.Println(info.Kind, err)
	_, err = s.For("another holder").Stat(ctx, "base")
	fmt.Println(err)
	// Output:
	// 1 mount of type bind <nil>
	// <nil>
	// Committed <nil>
	// snapshot base: not found
}
