package cause

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// system returns the cause of one error of the operating system, or "". It does not unwrap err.
func system(err error) Kind {
	if err == fs.ErrPermission { //nolint:errorlint // the caller walks the chain
		return Denied
	}
	errno, _ := err.(unix.Errno) //nolint:errorlint // as above
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return DiskFull
	case unix.EPERM, unix.EACCES:
		return Denied
	case unix.EROFS:
		return ReadOnly
	case unix.EMFILE, unix.ENFILE:
		return Descriptors
	case unix.ENOMEM:
		return Memory
	case unix.EIO:
		return IO
	}
	return ""
}
