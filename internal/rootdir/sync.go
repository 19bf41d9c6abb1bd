package rootdir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
)

// syncEntry forces a new entry of a pool to the disk: its files, its directories, and its name. Where one sync
// of a file takes all earlier changes of directories along, it syncs the files alone, and callers that come at
// once share the write.
func (d *Dir) syncEntry(pool, path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	files := 0
	var dirs []string
	for _, e := range entries {
		at := filepath.Join(path, e.Name())
		switch {
		case e.IsDir():
			dirs = append(dirs, at)
		case e.Type().IsRegular():
			files++
			err = errors.Join(err, d.syncFile(at))
		}
	}
	if files > 0 && d.journaled[pool] {
		return err
	}
	for _, dir := range append(dirs, path, d.Path(pool)) {
		err = errors.Join(err, d.fs.SyncDir(dir))
	}
	return err
}

// SyncTree forces a tree in a pool to the disk, together with the next sync of a file in that pool. writeBack forces
// the bytes of the files. Where the sync of a file does not take the changes of directories along, SyncTree syncs the
// file system.
func (d *Dir) SyncTree(pool, path string, writeBack func() error) error {
	if d.journaled[pool] {
		return errclass.Ensure(writeBack())
	}
	return d.fs.Syncfs(path)
}

func (d *Dir) syncFile(path string) error {
	f, err := d.fs.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errclass.Ensure(errors.Join(f.Sync(), f.Close()))
}

// isJournaled reports whether an fsync of a file of the file system also writes all earlier changes of
// directories to the disk. XFS writes its log, and ext4 its journal, up to and with the last change of the file.
func isJournaled(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.XFS_SUPER_MAGIC:
		return true
	case unix.EXT4_SUPER_MAGIC: // also without a journal, and for ext2 and ext3
		var fi unix.Stat_t
		if unix.Stat(path, &fi) != nil {
			return false
		}
		device := strconv.Itoa(int(unix.Major(fi.Dev))) + ":" + strconv.Itoa(int(unix.Minor(fi.Dev)))
		name, err := os.Readlink("/sys/dev/block/" + device)
		if err != nil {
			return false
		}
		task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(name), "journal_task"))
		return err == nil && len(task) > 0 && !bytes.HasPrefix(task, []byte("<"))
	}
	return false
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
