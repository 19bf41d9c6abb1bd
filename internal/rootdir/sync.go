package rootdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
)

// syncEntry makes a new entry of a pool durable before its record is, if the two lie on different
// file systems. On one file system the sync of the record covers the directory as well.
func (d *Dir) syncEntry(pool, path string) error {
	if !d.separate[pool] {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, d.fs.SyncDir(filepath.Join(path, e.Name())))
		}
	}
	return errors.Join(err, d.fs.SyncDir(path), d.fs.SyncDir(d.Path(pool)))
}

// Sync writes what is in the pools to the disk: each of their file systems once.
func (d *Dir) Sync(pools ...string) error {
	done := map[uint64]bool{}
	for _, pool := range pools {
		var st unix.Stat_t
		err := unix.Stat(d.Path(pool), &st)
		if err == nil && !done[st.Dev] {
			err = d.fs.Syncfs(d.Path(pool))
			done[st.Dev] = true
		}
		if err != nil {
			return errclass.Ensure(fmt.Errorf("root %s: %s: syncfs: %w", d.root, pool, err))
		}
	}
	return nil
}
