package nodes

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// WriteBack forces the bytes of all regular files below dir to the disk, but not their attributes and names, nor what
// the disk itself buffers: the next sync of a file that was changed later does that, in a file system with a journal.
// So a tree costs two flushes of the disk, however many files it has, and nothing else is written.
//
// Files that are replaced or removed at the same time are left out.
func WriteBack(ctx context.Context, dir string) error {
	root, err := OpenTree(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// The first round lets the kernel write the files together, and the second one waits.
	const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for _, flags := range []int{unix.SYNC_FILE_RANGE_WRITE, wait} {
		err := eachBelow(ctx, root, func(dir *os.File, name string) (bool, error) {
			return writeBack(dir, name, flags)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func writeBack(dir *os.File, name string, flags int) (isDir bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, PathError("stat", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
	}
	f, err := OpenFile(dir, name, true)
	if errors.Is(err, ErrReplaced) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.SyncFileRange(int(f.Fd()), 0, 0, flags)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // a sandbox forbids it
		err = unix.Fsync(int(f.Fd()))
	}
	if err != nil {
		return false, PathError("sync", name, err)
	}
	return false, nil
}
