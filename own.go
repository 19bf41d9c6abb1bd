package tank

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/internal/reserve"
)

const (
	lockName     = "lock"
	databaseName = "metadata.db"
	// daemonFlag is the flag in the database of a daemon's root; see Options.Daemon.
	daemonFlag = "daemon"
)

// own finds or makes the root, locks it, and refuses one that was made with other rights. It returns the root's mark,
// and writes one when a root of Tank 0.1.0 has none.
func (t *Tank) own(make, allowReadOnly bool) (m mark, err error) {
	st, m, err := examine(t.root)
	if (st == missing || st == empty) && err == nil {
		if !make {
			why := map[state]string{missing: "does not exist", empty: "is empty"}[st]
			return m, fmt.Errorf("the directory %s: %w", why, ErrNoRoot)
		}
		if err := makeRoot(t.root); err != nil {
			return m, err
		}
		st, m, err = examine(t.root)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return m, otherUser(err)
	case err != nil:
		return m, err
	case st != marked && st != unmarked:
		return m, noRoot("not a root: the directory is not empty, and another program made it")
	}
	if err := checkOwners(t.root); err != nil {
		if by := t.madeBy(); by != nil {
			return m, by
		}
		return m, err
	}
	if t.readOnly, err = unwritable(t.root, allowReadOnly); err != nil {
		return m, err
	}
	if t.readOnly && !allowReadOnly {
		return m, cause.Mark(fmt.Errorf("it can't be written: %w", errdefs.ErrFailedPrecondition), cause.ReadOnly, "")
	}
	if err := t.takeLock(); err != nil {
		return m, err
	}
	if t.mode, err = recordMode(t.lock, t.readOnly); err != nil {
		return m, err
	}
	if st == unmarked && !t.readOnly {
		m = mark{format: markFormat}
		if err = writeMark(t.root, m); reserve.Full(err) {
			err = nil // a command that frees space must be able to open the root; the next opening marks it
		}
	}
	return m, err
}

// otherUser is the error for a root that this process may not read.
func otherUser(err error) error {
	return cause.Mark(fmt.Errorf("belongs to another user: %w: %w", err, errdefs.ErrFailedPrecondition),
		cause.ForeignUser, "")
}

// takeLock opens and locks the file lock: for this process alone, or together with other readers when nothing can be
// written.
func (t *Tank) takeLock() error {
	path := filepath.Join(t.root, lockName)
	flags, how := unix.O_RDWR, unix.LOCK_EX
	if t.readOnly {
		flags, how = unix.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flags|regular.Flags, 0)
	if errors.Is(err, os.ErrNotExist) && !t.readOnly {
		f, err = os.OpenFile(path, flags|regular.Flags|unix.O_CREAT|unix.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) { // another process was quicker
			f, err = os.OpenFile(path, flags|regular.Flags, 0)
		}
	}
	if errors.Is(err, os.ErrPermission) {
		return otherUser(err)
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return noRoot("file " + lockName + ": not a regular file")
	}
	if err != nil {
		return err
	}
	if err = lockFile(f, how); err != nil {
		return errors.Join(err, f.Close())
	}
	t.lock = f
	return nil
}

func lockFile(f *os.File, how int) error {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxLock:
		return noRoot("file " + lockName + ": not a small regular file")
	case st.Nlink > 1: // this file is written in place: a second name could be anybody's file
		return noRoot("file " + lockName + ": a hard link of another file")
	case int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0:
		return cause.Mark(fmt.Errorf("file %s: another user can write to it (uid %d, mode %04o): %w",
			lockName, st.Uid, st.Mode&0o7777, errdefs.ErrFailedPrecondition), cause.Exposed, "")
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return cause.Mark(fmt.Errorf("another process owns it: %w", errdefs.ErrUnavailable), cause.Busy, "")
	}
	return err
}

// madeBy returns the error for a root that was made with other rights; nil when its file lock can't be read.
func (t *Tank) madeBy() error {
	f, err := regular.Open(filepath.Join(t.root, lockName))
	if err != nil {
		return nil // the caller reports why the root can't be read
	}
	defer f.Close()
	_, err = recordMode(f, true)
	return err
}

// unwritable reports whether the root can't be written. With all, it also reports whether one of Tank's directories or
// of the files that are written in place can't be written; a caller that writes would notice that at its first write.
func unwritable(root string, all bool) (bool, error) {
	names := append([]string{".", lockName, databaseName}, ownDirs...)
	if !all {
		names = names[:1]
	}
	for _, name := range names {
		err := unix.Faccessat(unix.AT_FDCWD, filepath.Join(root, name), unix.W_OK, 0)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP):
		case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return true, nil
		default:
			return false, fmt.Errorf("access to %s: %w", printable.Text(name), err)
		}
	}
	return false, nil
}
