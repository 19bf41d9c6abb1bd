package unpack

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// climber walks a tree of any depth with one descriptor open. It goes up by "..", and checks that it came to the directory
// that it had come from: somebody may move directories about.
type climber struct {
	fd    int
	owned bool // fd is the climber's to close
	up    []level
}

type level struct {
	name     string // of the directory below it that was entered
	dev, ino uint64 // of the directory itself
	owned    bool
	fd       int // of the first level, which is not reached by ".."
}

// down enters the directory name.
func (c *climber) down(name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(c.fd, &st); err != nil {
		return err
	}
	fd, err := openat(c.fd, name, dirFlags, 0)
	if err != nil {
		return err
	}
	c.up = append(c.up, level{name: name, dev: uint64(st.Dev), ino: st.Ino, owned: c.owned, fd: c.fd})
	if c.owned {
		unix.Close(c.fd)
	}
	c.fd, c.owned = fd, true
	return nil
}

// leave returns to the directory above and says what the one that it left is called there.
func (c *climber) leave() (string, error) {
	last := c.up[len(c.up)-1]
	fd := last.fd
	if last.owned {
		var err error
		if fd, err = openat(c.fd, "..", dirFlags, 0); err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return "", err
		}
		if uint64(st.Dev) != last.dev || st.Ino != last.ino {
			unix.Close(fd)
			return "", fmt.Errorf("directory %q was moved: %w", clip(last.name), unix.ESTALE)
		}
	}
	unix.Close(c.fd)
	c.fd, c.owned = fd, last.owned
	c.up = c.up[:len(c.up)-1]
	return last.name, nil
}

func (c *climber) close() {
	if c.owned {
		unix.Close(c.fd)
	}
}

// RemoveAll removes name in dir and all below it, of any depth, without following symlinks and without leaving the tree. A
// name that is not there is no error. Directories that their owner cannot search are opened up first.
func RemoveAll(dir *os.File, name string) error {
	defer runtime.KeepAlive(dir)
	if err := removeAll(int(dir.Fd()), name); err != nil {
		return fmt.Errorf("remove %q: %w", clip(name), err)
	}
	return nil
}

func removeAll(fd int, name string) error {
	done, err := removeOne(fd, name)
	if done || err != nil {
		return err
	}
	c := &climber{fd: fd}
	defer c.close()
	if err := enter(c, name); err != nil {
		return err
	}
	for len(c.up) > 0 {
		sub, err := removeContent(c.fd)
		if err != nil {
			return err
		}
		if sub != "" {
			if err := enter(c, sub); err != nil {
				return err
			}
			continue
		}
		left, err := c.leave()
		if err != nil {
			return err
		}
		if err := unix.Unlinkat(c.fd, left, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// enter goes down and makes sure that the directory can be emptied.
func enter(c *climber, name string) error {
	err := c.down(name)
	if err == unix.EACCES {
		if err = (target{c.fd, name}).chmod(0o700); err == nil {
			err = c.down(name)
		}
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return unix.Fchmod(c.fd, 0o700)
	}
	return nil
}

// removeOne removes what is not a directory, or an empty one.
func removeOne(fd int, name string) (done bool, err error) {
	err = unix.Unlinkat(fd, name, 0)
	switch err {
	case nil, unix.ENOENT:
		return true, nil
	case unix.EISDIR, unix.EPERM: // POSIX allows either for a directory
	default:
		return false, err
	}
	switch derr := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); derr {
	case nil, unix.ENOENT:
		return true, nil
	case unix.ENOTEMPTY, unix.EEXIST:
		return false, nil
	case unix.ENOTDIR:
		return false, err
	default:
		return false, derr
	}
}

// removeContent empties the directory until it comes to a directory that is not empty, which it returns.
func removeContent(fd int) (string, error) {
	dup, err := openat(fd, ".", dirFlags, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(dup), ".")
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			done, err := removeOne(fd, name)
			if err != nil {
				return "", err
			}
			if !done {
				return name, nil
			}
		}
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}
