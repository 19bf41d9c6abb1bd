// Package rootlock decides whether a directory is a root, makes one, and gives it to one process at
// a time.
//
// It owns two files of a root: tank-root, the mark that makes a directory a root, and lock, which
// the owning process locks and which records with which rights the root was made.
//
// Its invariant: a directory that is not a root, or belongs to another user, or is in use by
// another process, is not changed in any way.
//
// The surprising rule: several processes may hold the lock at once, if none of them can write to
// the root (a read-only mount). They share it, and change nothing.
package rootlock

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/internal/reserve"
)

// Database is the name of the database in a root.
const Database = "metadata.db"

// lockName is the name of the file that the owner of a root locks.
const lockName = "lock"

// Options of Take. nil means the zero value.
type Options struct {
	// Make makes a root in a directory that is missing or empty. false: Take returns ErrNoRoot.
	Make bool
	// AllowReadOnly takes a root that can't be written, too; see Lock.ReadOnly. false: such a root
	// is refused with errdefs.ErrFailedPrecondition.
	AllowReadOnly bool
	// Overlay refuses to make a root on a file system that overlay mounts cannot use. false: nothing is
	// mounted.
	Overlay bool
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
}

// Lock is the right of this process to use a root.
type Lock struct {
	root     string
	fs       fsys.FS
	file     fsys.File
	mark     mark
	access   Access
	readOnly bool
	made     bool // by this Take
}

// Take finds or makes the root at an absolute path and locks it for this process. A root of Tank
// 0.1.0, which has no mark, gets one.
//
// It returns errdefs.ErrUnavailable while another process owns the root, ErrNoRoot, and
// errdefs.ErrFailedPrecondition for a directory of another program, a root of a newer Tank, a root
// that belongs to another user, was made with another access, or can be written by other users, and a
// missing root where the file system lacks what Tank needs.
func Take(root string, opts *Options) (_ *Lock, err error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	l := &Lock{root: root, fs: cmp.Or(o.FS, fsys.OS)}
	st, err := l.find(o.Make, o.Overlay)
	if err != nil {
		return nil, err
	}
	if err := checkOwners(root); err != nil {
		return nil, cmp.Or(l.madeBy(), err)
	}
	if l.readOnly, err = unwritable(root, o.AllowReadOnly); err != nil {
		return nil, err
	}
	if l.readOnly && !o.AllowReadOnly {
		return nil, cause.Mark(fmt.Errorf("it can't be written: %w", errdefs.ErrFailedPrecondition), cause.ReadOnly, "")
	}
	if err := l.take(); err != nil {
		return nil, err
	}
	if !l.readOnly {
		removeUnfinishedMarks(l.fs, root)
	}
	if l.access, err = recordAccess(l.file, l.readOnly); err == nil && st == unmarked && !l.readOnly {
		l.mark = mark{format: markFormat}
		if err = writeMark(l.fs, root, l.mark); reserve.Full(err) {
			err = nil // a command that frees space must be able to open the root; the next opening marks it
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// find examines the directory, and makes a root in one that is missing or empty if it may. It
// returns marked or unmarked, or an error.
func (l *Lock) find(make, overlay bool) (st state, err error) {
	st, l.mark, err = examine(l.root)
	if (st == missing || st == empty) && err == nil {
		if !make {
			why := map[state]string{missing: "does not exist", empty: "is empty"}[st]
			return st, fmt.Errorf("the directory %s: %w", why, ErrNoRoot)
		}
		if err := makeRoot(l.fs, l.root, overlay); err != nil {
			return st, err
		}
		l.made = true
		st, l.mark, err = examine(l.root)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return st, errOtherUser(err)
	case err != nil:
		return st, err
	case st != marked && st != unmarked:
		return st, errNotRoot("not a root: the directory is not empty, and another program made it")
	}
	return st, nil
}

// errOtherUser is the error for a root that this process may not read.
func errOtherUser(err error) error {
	return cause.Mark(fmt.Errorf("belongs to another user: %w: %w", err, errdefs.ErrFailedPrecondition),
		cause.OtherUser, "")
}

// take opens and locks the file lock: for this process alone, or together with other readers when
// nothing can be written.
func (l *Lock) take() error {
	path := filepath.Join(l.root, lockName)
	flags, how := unix.O_RDWR, unix.LOCK_EX
	if l.readOnly {
		flags, how = unix.O_RDONLY, unix.LOCK_SH
	}
	f, err := l.fs.OpenFile(path, flags|regular.Flags, 0)
	if errors.Is(err, os.ErrNotExist) && !l.readOnly {
		f, err = l.fs.OpenFile(path, flags|regular.Flags|unix.O_CREAT|unix.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) { // another process was quicker
			f, err = l.fs.OpenFile(path, flags|regular.Flags, 0)
		}
	}
	if errors.Is(err, os.ErrPermission) {
		return errOtherUser(err)
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return errNotRoot("file " + lockName + ": not a regular file")
	}
	if err != nil {
		return err
	}
	if err = lockFile(f, how); err != nil {
		return errors.Join(err, f.Close())
	}
	l.file = f
	return nil
}

func lockFile(f fsys.File, how int) error {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxLock:
		return errNotRoot("file " + lockName + ": not a small regular file")
	case st.Nlink > 1: // this file is written in place: a second name could be anybody's file
		return errNotRoot("file " + lockName + ": a hard link of another file")
	case int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0:
		return cause.Mark(fmt.Errorf("file %s: another user can write to it (uid %d, mode %04o): %w",
			lockName, st.Uid, st.Mode&0o7777, errdefs.ErrFailedPrecondition), cause.Exposed, "")
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return cause.Mark(fmt.Errorf("another process owns it: %w", errdefs.ErrUnavailable), cause.Busy, "")
	}
	return errLock(err)
}

// madeBy returns the error for a root that was made with another access. It returns nil if the file
// lock can't be read: then the caller reports why the root is refused.
func (l *Lock) madeBy() error {
	f, err := regular.Open(filepath.Join(l.root, lockName))
	if err != nil {
		return nil
	}
	defer f.Close()
	_, err = recordAccess(f, true)
	return err
}

// unwritable reports whether the root can't be written. With all, it also reports whether one of
// Tank's directories or of the files that are written in place can't be written; a caller that
// writes would notice that at its first write.
func unwritable(root string, all bool) (bool, error) {
	names := append([]string{".", lockName, Database}, directories...)
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

// Close gives the root up.
func (l *Lock) Close() error { return l.file.Close() }

// ReadOnly reports whether the root can't be written. Then other processes may read it at the same
// time.
func (l *Lock) ReadOnly() bool { return l.readOnly }

// Access returns the rights that this process has to the files of the root.
func (l *Lock) Access() Access { return l.access }

// Daemon reports whether the mark says that the root is a daemon's.
func (l *Lock) Daemon() bool { return l.mark.daemon }

// MarkDaemon makes the root a daemon's, durably. A full disk is no error: the next opening marks
// the root.
func (l *Lock) MarkDaemon() error {
	if l.mark.daemon {
		return nil
	}
	m := l.mark
	m.daemon = true
	err := writeMark(l.fs, l.root, m)
	if err == nil {
		l.mark = m
	}
	if reserve.Full(err) {
		return nil
	}
	return err
}

// Sync writes the file systems of the root and of its directories to the disk.
func (l *Lock) Sync() error {
	for _, dir := range append([]string{"."}, directories...) {
		err := l.fs.Syncfs(filepath.Join(l.root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("directory %s: %w", dir, err)
		}
	}
	return nil
}

// Unused reports whether the root has nothing that a database could have recorded, and no database.
// index.json is not examined.
func (l *Lock) Unused() (bool, error) {
	names, err := namesIn(l.root)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(names,
		func(n string) bool { return n == Database || strings.HasPrefix(n, Database+".old") }) {
		return false, nil
	}
	for _, dir := range directories {
		if dir == "staging" || dir == "reserve" {
			continue
		}
		names, err := namesIn(filepath.Join(l.root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		for _, n := range names {
			if counts(n) && n[0] != '.' && !slices.Contains(directories, filepath.Join(dir, n)) {
				return false, nil
			}
		}
	}
	return true, nil
}
