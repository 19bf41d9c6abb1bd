package beneath

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/printable"
)

// Climber walks a tree of any depth with one open descriptor. It goes up by "..", and checks that ".." leads to the
// directory from which it went down, because another process may move directories.
type Climber struct {
	FD      int     // the current directory
	closeFD bool    // Climber opened FD and closes it
	up      []level // the directories above FD, topmost first
}

// level is a directory above the current one.
type level struct {
	name     string // name of the subdirectory that was entered
	dev, ino uint64 // identify the directory
	closeFD  bool   // as in Climber, when this was the current directory
	fd       int    // descriptor of the first level, which is not reached by ".."
}

// Down enters the subdirectory name.
func (c *Climber) Down(name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(c.FD, &st); err != nil {
		return err
	}
	fd, err := OpenAt(c.FD, name, DirFlags, 0)
	if err != nil {
		return err
	}
	c.up = append(c.up, level{name: name, dev: uint64(st.Dev), ino: st.Ino, closeFD: c.closeFD, fd: c.FD})
	if c.closeFD {
		unix.Close(c.FD)
	}
	c.FD, c.closeFD = fd, true
	return nil
}

// Leave returns to the directory above. It returns the name of the directory that it left, or an error that wraps
// unix.ESTALE if that directory was moved.
func (c *Climber) Leave() (string, error) {
	last := c.up[len(c.up)-1]
	fd := last.fd
	if last.closeFD {
		var err error
		if fd, err = OpenAt(c.FD, "..", DirFlags, 0); err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return "", err
		}
		if uint64(st.Dev) != last.dev || st.Ino != last.ino {
			unix.Close(fd)
			return "", fmt.Errorf("directory %q was moved: %w", printable.Clip(last.name), unix.ESTALE)
		}
	}
	unix.Close(c.FD)
	c.FD, c.closeFD = fd, last.closeFD
	c.up = c.up[:len(c.up)-1]
	return last.name, nil
}

// Close closes FD if the Climber opened it.
func (c *Climber) Close() {
	if c.closeFD {
		unix.Close(c.FD)
	}
}

// RemoveAll removes name in dir and everything below it, at any depth, without following symlinks and without leaving
// the tree. It is no error if the name does not exist. RemoveAll changes the mode of directories that their owner
// cannot search.
//
// If RemoveAll cannot remove an inode, such as an immutable file, it removes the rest and returns a leftover.Error with
// paths below dir. When ctx ends, it returns the error of ctx. It calls freed with the bytes of disk blocks that each
// removal frees, which costs a stat for each; nil: the bytes are not counted.
func RemoveAll(ctx context.Context, dir *os.File, name string, freed func(bytes int64)) error {
	defer runtime.KeepAlive(dir)
	if err := RemoveAllAt(ctx.Err, int(dir.Fd()), name, freed); err != nil {
		return fmt.Errorf("remove %q: %w", printable.Clip(name), err)
	}
	return nil
}

// RemoveAllAt is like RemoveAll for the descriptor of a directory. It calls interrupted from time to time, and returns
// its error unless that is nil.
func RemoveAllAt(interrupted func() error, fd int, name string, freed func(int64)) error {
	r := &remover{Climber: Climber{FD: fd}, interrupted: interrupted, freed: freed}
	defer r.Close()
	if err := r.run(name); err != nil {
		return err
	}
	if r.left != nil { // a nil *leftover.Error in an error would not be nil
		return r.left
	}
	return nil
}

// remover empties a tree. It adds each path that it cannot remove to left, and its name to kept, so that it does not
// try again when it lists the directory again.
type remover struct {
	Climber
	kept        []map[string]bool // names that remain: for each level of Climber.up, then for the current directory
	left        *leftover.Error
	interrupted func() error      // returns an error if the removal has to end
	freed       func(bytes int64) // nil: the bytes are not counted
}

// bytes returns how many bytes of disk blocks the removal of name in the current directory frees. It returns 0 for a
// file that has other names, and if nothing is counted.
func (r *remover) bytes(name string) int64 {
	var st unix.Stat_t
	if r.freed == nil || unix.Fstatat(r.FD, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return 0
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		return 0
	}
	const block = 512 // bytes of a block that stat(2) counts
	return st.Blocks * block
}

// count passes the bytes that a removal has freed to freed.
func (r *remover) count(bytes int64) {
	if r.freed != nil {
		r.freed(bytes)
	}
}

// run removes name and everything below it.
func (r *remover) run(name string) error {
	r.kept = append(r.kept, nil)
	if r.removed(name) {
		return nil
	}
	r.enter(name)
	for len(r.up) > 0 {
		if err := r.interrupted(); err != nil {
			return err
		}
		sub, err := r.removeContent()
		if err != nil {
			r.keep(".", err)
		}
		if sub != "" {
			r.enter(sub)
			continue
		}
		if err := r.leaveEmpty(); err != nil {
			return err
		}
	}
	return r.interrupted()
}

// leaveEmpty returns to the directory above. It removes the directory that it left, unless a name remains there.
func (r *remover) leaveEmpty() error {
	remains := len(r.kept[len(r.kept)-1]) > 0
	name, err := r.Leave()
	if err != nil {
		return err
	}
	r.kept = r.kept[:len(r.kept)-1]
	if remains {
		r.skip(name)
		return nil
	}
	bytes := r.bytes(name)
	switch err := unix.Unlinkat(r.FD, name, unix.AT_REMOVEDIR); err {
	case nil:
		r.count(bytes)
	case unix.ENOENT:
	default:
		r.keep(name, err)
	}
	return nil
}

// removed removes a file or an empty directory. It returns false if name is a directory that has to be emptied first,
// and true if name was removed or recorded as remaining.
func (r *remover) removed(name string) bool {
	bytes := r.bytes(name)
	done, err := removeOne(r.FD, name)
	if err != nil {
		r.keep(name, err)
	} else if done {
		r.count(bytes)
	}
	return done || err != nil
}

// enter enters a directory and changes its mode if the owner could not empty it.
func (r *remover) enter(name string) {
	err := r.Down(name)
	if err == unix.EACCES {
		if err = (Inode{r.FD, name}).Chmod(0o700); err == nil {
			err = r.Down(name)
		}
	}
	if err == unix.ENOTDIR {
		err = unix.EPERM // rmdir refuses an immutable file before it looks at the type
	}
	if err != nil {
		r.keep(name, err)
		return
	}
	r.kept = append(r.kept, nil)
	if os.Geteuid() != 0 {
		if err := unix.Fchmod(r.FD, 0o700); err != nil {
			r.keep(".", err)
		}
	}
}

// keep records that name in the current directory could not be removed because of err.
func (r *remover) keep(name string, err error) {
	at := make([]string, 0, len(r.up)+1)
	for _, l := range r.up[:min(len(r.up), maxNamed)] {
		at = append(at, printable.Clip(l.name))
	}
	r.left = r.left.Add(
		leftover.New(path.Join(append(at, printable.Clip(name))...), leftover.Protected(r.FD, name), err),
	)
	r.skip(name)
}

const (
	maxNamed = 32      // the largest number of directories in a recorded path
	maxKept  = 1 << 16 // the largest number of names that are recorded for one directory; then the rest of it stays
)

// skip marks a name in the current directory as remaining.
func (r *remover) skip(name string) {
	top := len(r.kept) - 1
	if r.kept[top] == nil {
		r.kept[top] = map[string]bool{}
	}
	r.kept[top][name] = true
}

// removeOne removes a file or an empty directory. done is false, without an error, for a directory that is not empty.
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
	case unix.EPERM: // the directory or its parent is immutable, but its content may be removable
		return false, nil
	default:
		return false, derr
	}
}

// removeContent empties the current directory up to the first subdirectory that is not empty, and returns the name of
// that subdirectory. It returns "" if the directory is empty but for names that remain.
func (r *remover) removeContent() (string, error) {
	dup, err := OpenAt(r.FD, ".", DirFlags, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(dup), ".")
	defer f.Close()
	for {
		if len(r.kept[len(r.kept)-1]) >= maxKept {
			return "", nil
		}
		if r.interrupted() != nil {
			return "", nil // run returns the error
		}
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if !r.kept[len(r.kept)-1][name] && !r.removed(name) {
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
