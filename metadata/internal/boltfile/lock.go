package boltfile

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lock takes the lock that bbolt takes as well, so that no process writes the pages of a file while they are verified.
// It returns unix.EWOULDBLOCK if another process has the lock for as long as timeout.
func Lock(f *os.File, shared bool, timeout time.Duration) error {
	how := unix.LOCK_EX | unix.LOCK_NB
	if shared {
		how = unix.LOCK_SH | unix.LOCK_NB
	}
	for end := time.Now().Add(timeout); ; time.Sleep(timeout / 10) {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
	}
}
