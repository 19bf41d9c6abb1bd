package snapshot

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncfsOf writes the file system of a directory to the disk. Where a sandbox knows no syncfs, or does not permit it,
// everything is written that the machine has not written yet: that takes longer, and reports no errors of the disk.
func syncfsOf(dir *os.File) error {
	err := unix.Syncfs(int(dir.Fd()))
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		unix.Sync()
		return nil
	}
	return err
}
