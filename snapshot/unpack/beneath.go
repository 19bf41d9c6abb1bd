package unpack

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// opener opens directories below a root. Their paths have no symlinks any more; if one is found nevertheless, somebody else
// is at work in the directory and the open fails.
type opener struct {
	root int
	dev  uint64
	walk bool // component by component, for kernels and sandboxes without openat2
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

var resolveHow = unix.OpenHow{
	Flags:   dirFlags,
	Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
}

func newOpener(root int, walk bool) (*opener, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, err
	}
	o := &opener{root: root, dev: uint64(st.Dev), walk: walk}
	if walk {
		return o, nil
	}
	fd, err := o.openat2(root, ".")
	switch {
	case err == nil:
		unix.Close(fd)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL):
		o.walk = true // missing, forbidden by a seccomp filter, or without these flags
	default:
		return nil, err
	}
	return o, nil
}

// dir opens the directory rel below at, which is the root or a directory below it.
func (o *opener) dir(at int, rel string) (int, error) {
	if !o.walk {
		return o.openat2(at, rel)
	}
	fd := at
	for rel != "" {
		var c string
		c, rel, _ = strings.Cut(rel, "/")
		next, err := o.step(fd, c)
		if fd != at {
			unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

func (o *opener) openat2(at int, rel string) (fd int, err error) {
	for tries := 0; ; {
		how := resolveHow
		fd, err = unix.Openat2(at, rel, &how)
		if err == unix.EINTR {
			continue
		}
		if tries++; err == unix.EAGAIN && tries < 100 {
			continue
		}
		return fd, err
	}
}

// step opens one directory and refuses mount points of other filesystems.
func (o *opener) step(at int, name string) (int, error) {
	fd, err := openat(at, name, dirFlags, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if uint64(st.Dev) != o.dev {
		unix.Close(fd)
		return -1, fmt.Errorf("%q is another filesystem: %w", name, unix.EXDEV)
	}
	return fd, nil
}

// OpenDirBelow opens a directory below dir. No component of its path may be a symbolic link, and none leads out of dir.
func OpenDirBelow(dir *os.File, rel string) (*os.File, error) {
	defer runtime.KeepAlive(dir)
	var fd int
	var err error
	if !strings.Contains(rel, "/") {
		fd, err = openat(int(dir.Fd()), rel, dirFlags, 0)
	} else {
		var o *opener
		if o, err = newOpener(int(dir.Fd()), false); err == nil {
			fd, err = o.dir(o.root, rel)
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: clip(rel), Err: err}
	}
	return os.NewFile(uintptr(fd), clip(rel)), nil
}

func openat(at int, name string, flags int, mode uint32) (fd int, err error) {
	err = ignoringEINTR(func() error {
		fd, err = unix.Openat(at, name, flags, mode)
		return err
	})
	return fd, err
}
