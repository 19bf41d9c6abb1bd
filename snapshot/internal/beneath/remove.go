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

// Climber walks a tree of any depth with one descriptor open. It goes up by "..", and checks that this leads to the
// directory from which it went down, because another process may move directories.
type Climber struct {
	FD    int
	owned bool // fd is the climber's to close
	up    []level
}

type level struct {
	name     string // of the directory below it that was entered
	dev, ino uint64 // of the directory itself
	owned    bool
	fd       int // of the first level, which is not reached by ".."
}

// Down enters the directory name.
func (c *Climber) Down(name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(c.FD, &st); err != nil {
		return err
	}
	fd, err := OpenAt(c.FD, name, DirFlags, 0)
	if err != nil {
		return err
	}
	c.up = append(c.up, level{name: name, dev: uint64(st.Dev), ino: st.Ino, owned: c.owned, fd: c.FD})
	if c.owned {
		unix.Close(c.FD)
	}
	c.FD, c.owned = fd, true
	return nil
}

// Leave returns to the directory above, and returns the name there of the directory that it left.
func (c *Climber) Leave() (string, error) {
	last := c.up[len(c.up)-1]
	fd := last.fd
	if last.owned {
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
	c.FD, c.owned = fd, last.owned
	c.up = c.up[:len(c.up)-1]
	return last.name, nil
}

// Close closes the descriptor.
func (c *Climber) Close() {
	if c.owned {
		unix.Close(c.FD)
	}
}

// RemoveAll removes name in dir and all below it, of any depth, without following symlinks and without leaving the
// tree. A name that does not exist is no error. Directories that their owner cannot search are opened up first. It
// goes on past what it cannot remove, such as an immutable file, and then returns a leftover.Error with paths below
// dir. It ends with ctx, whose error it returns then. freed is called with the bytes of disk blocks that each removal
// gives back, which costs a stat for each; nil: nothing is counted.
func RemoveAll(ctx context.Context, dir *os.File, name string, freed func(bytes int64)) error {
	defer runtime.KeepAlive(dir)
	if err := RemoveAllAt(ctx.Err, int(dir.Fd()), name, freed); err != nil {
		return fmt.Errorf("remove %q: %w", printable.Clip(name), err)
	}
	return nil
}

// RemoveAllAt is like RemoveAll for a directory's descriptor. It ends with the error of interrupted.
func RemoveAllAt(interrupted func() error, fd int, name string, freed func(int64)) error {
	r := &remover{Climber: Climber{FD: fd}, interrupted: interrupted, freed: freed}
	defer r.Close()
	if err := r.run(name); err != nil {
		return err
	}
	if r.left != nil { // a nil *Error in an interface would not be nil
		return r.left
	}
	return nil
}

// remover empties a tree. Whatever it could not remove has its name in left, and in kept of the directory that holds
// it, so that the directory is not emptied again and again.
type remover struct {
	Climber
	kept []map[string]bool // of each level of climber.up, and of the directory that it is in
	left *leftover.Error
	// interrupted returns why the removal has to end.
	interrupted func() error
	freed       func(bytes int64) // nil: nothing is counted
}

// bytes returns how many bytes of disk blocks go with name, in the current directory of r: none for a file that has
// other names.
func (r *remover) bytes(name string) int64 {
	var st unix.Stat_t
	if r.freed == nil || unix.Fstatat(r.FD, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return 0
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		return 0
	}
	const block = 512 // stat(2)
	return st.Blocks * block
}

// count is called after name was removed.
func (r *remover) count(bytes int64) {
	if r.freed != nil {
		r.freed(bytes)
	}
}

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

// leaveEmpty goes up, and removes the directory that it leaves unless something was kept there.
func (r *remover) leaveEmpty() error {
	holds := len(r.kept[len(r.kept)-1]) > 0
	name, err := r.Leave()
	if err != nil {
		return err
	}
	r.kept = r.kept[:len(r.kept)-1]
	if holds {
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

// removed removes what is not a directory, or an empty one. It reports whether name is done with: removed, or kept.
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

// enter goes down and makes sure that the directory can be emptied.
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

// keep records that name, in the current directory of r, was not removed.
func (r *remover) keep(name string, err error) {
	at := make([]string, 0, len(r.up)+1)
	for _, l := range r.up[:min(len(r.up), maxNamed)] {
		at = append(at, printable.Clip(l.name))
	}
	r.left = r.left.Add(leftover.New(path.Join(append(at, printable.Clip(name))...), leftover.Protected(r.FD, name), err))
	r.skip(name)
}

const (
	maxNamed = 32      // how many directories the path of a kept file names
	maxKept  = 1 << 16 // how many entries of one directory are kept before the rest of it is left as well
)

func (r *remover) skip(name string) {
	top := len(r.kept) - 1
	if r.kept[top] == nil {
		r.kept[top] = map[string]bool{}
	}
	r.kept[top][name] = true
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
	case unix.EPERM: // an immutable directory, or one in an immutable directory: what it holds may go
		return false, nil
	default:
		return false, derr
	}
}

// removeContent empties the directory until it comes to a directory that is not empty, which it returns. It returns ""
// when nothing is left but what is kept.
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
			return "", nil // run looks as well
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
