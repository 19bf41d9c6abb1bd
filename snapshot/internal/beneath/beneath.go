// Package beneath opens, reads, changes and removes single inodes below a directory descriptor. Package nodes builds on
// it: nodes copies content and works around modes that deny the owner access, which most functions here do not.
//
// It owns nothing on disk; its callers own the directories.
//
// Its invariant: no path leads out of the directory. Every component is opened without following a symlink, whatever
// another process does meanwhile.
//
// The surprising rule: it works without /proc and without openat2, by slower calls, because sandboxes may lack both.
package beneath

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// Opener opens directories below a root. The caller has resolved all symlinks of a path. If a component is a symlink
// nevertheless, another process has changed the directory, and the open fails.
type Opener struct {
	Root int // the descriptor of the root
	dev  uint64
	walk bool // open paths component by component, for kernels and sandboxes without openat2
}

// DirFlags are the flags with which directories are opened.
const DirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

var resolveHow = unix.OpenHow{
	Flags:   DirFlags,
	Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
}

// NewOpener returns an Opener for the directory with the descriptor root. The Opener does not close root, which must
// stay open while the Opener is used. walk makes it open paths component by component, as on a kernel without
// openat2.
func NewOpener(root int, walk bool) (*Opener, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, err
	}
	o := &Opener{Root: root, dev: uint64(st.Dev), walk: walk}
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

// Dir opens the directory rel below at, which is the root or a directory below it.
func (o *Opener) Dir(at int, rel string) (int, error) {
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

func (o *Opener) openat2(at int, rel string) (fd int, err error) {
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

// step opens one directory. It returns EXDEV for a mount point of another file system.
func (o *Opener) step(at int, name string) (int, error) {
	fd, err := OpenAt(at, name, DirFlags, 0)
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
		return -1, fmt.Errorf("%q is on another file system: %w", name, unix.EXDEV)
	}
	return fd, nil
}

// OpenDirBelow opens a directory below dir. rel is a clean relative path without "..". It returns an error if a
// component of the path is a symlink.
func OpenDirBelow(dir *os.File, rel string) (*os.File, error) {
	defer runtime.KeepAlive(dir)
	var fd int
	var err error
	if !strings.Contains(rel, "/") {
		fd, err = OpenAt(int(dir.Fd()), rel, DirFlags, 0)
	} else {
		var o *Opener
		if o, err = NewOpener(int(dir.Fd()), false); err == nil {
			fd, err = o.Dir(o.Root, rel)
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: printable.Clip(rel), Err: err}
	}
	return os.NewFile(uintptr(fd), printable.Clip(rel)), nil
}

// OpenAt is openat, repeated when a signal interrupts it.
func OpenAt(at int, name string, flags int, mode uint32) (fd int, err error) {
	err = IgnoringEINTR(func() error {
		fd, err = unix.Openat(at, name, flags, mode)
		return err
	})
	return fd, err
}

// IgnoringEINTR repeats a system call until no signal interrupts it.
func IgnoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
