package rootlock

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// directories are Tank's own directories in a root, each after its parent. Directories of images
// are not among them.
var directories = []string{
	"blobs", "blobs/sha256", "blobs/sha512", "ingest", "layers", "rootfs", "rootfs/sha256", "rootfs/sha512",
	"snapshots",
	"staging", "lost", "reserve",
}

// checkOwners returns errdefs.ErrFailedPrecondition unless the root and Tank's directories in it
// are directories that belong to the process's user and that no other user can write to. A user who
// can write to one could replace files in it by links.
func checkOwners(root string) error {
	uid := os.Geteuid()
	if err := checkOwner(unix.AT_FDCWD, root, uid); err != nil {
		return err
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	for _, dir := range directories {
		if err := checkOwner(fd, dir, uid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("directory %s: %w", dir, err)
		}
	}
	return nil
}

// checkOwner checks the directory at a path that is relative to dir, a file descriptor.
func checkOwner(dir int, path string, uid int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errNotRoot("not a directory but a symbolic link: mount another disk there instead")
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errNotRoot("not a directory")
	case int(st.Uid) != uid:
		return cause.Mark(fmt.Errorf("belongs to another user: uid %d, this process is uid %d: %w",
			st.Uid, uid, errdefs.ErrFailedPrecondition), cause.OtherUser, "")
	case st.Mode&0o022 != 0:
		return cause.Mark(fmt.Errorf("other users can write to it (mode %04o): %w",
			st.Mode&0o7777, errdefs.ErrFailedPrecondition), cause.Exposed, "")
	}
	return nil
}
