package rootlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/fsprobe"
	"github.com/tank-snapshotter/tank/internal/fsys"
)

// makeRoot makes the directory, unless it exists, and marks it. It leaves nothing behind on a file
// system that lacks what Tank needs.
func makeRoot(fs fsys.FS, root string, overlay bool) error {
	var made []string // directories that were missing, each before its parent
	for dir := root; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		made = append(made, dir)
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return err
	}
	if err := fs.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	err := checkOwner(unix.AT_FDCWD, root, os.Geteuid())
	if err == nil {
		err = fsprobe.Try(root, fsprobe.Needs{Overlay: overlay, Sync: true})
	}
	if err != nil {
		for _, dir := range made {
			_ = os.Remove(dir) // a directory that is in use by now is not empty
		}
		return err
	}
	return errors.Join(writeMark(fs, root, mark{format: markFormat}), fs.SyncDir(filepath.Dir(root)))
}

// Fit returns errdefs.ErrFailedPrecondition if a file system of the root lacks what Tank needs; with
// overlay also if overlay mounts cannot use it. Pools may lie on other file systems than the root, and
// a root that was moved lies on another one than that on which it was made. Fit changes nothing that
// lasts, and does nothing for a root that cannot be written.
func (l *Lock) Fit(overlay bool) error {
	if l.made || l.readOnly {
		return nil
	}
	type fileSystem struct {
		dir     string // a directory on it, relative to the root
		mounted bool   // overlay mounts use it
	}
	var all []*fileSystem
	on := map[uint64]*fileSystem{}
	for _, dir := range append([]string{"."}, directories...) {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(l.root, dir), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue // the room of a pool makes what is missing, and refuses what is no directory
		}
		if on[st.Dev] == nil {
			on[st.Dev] = &fileSystem{dir: dir}
			all = append(all, on[st.Dev])
		}
		on[st.Dev].mounted = on[st.Dev].mounted || overlay && (dir == "layers" || dir == "snapshots")
	}
	for _, f := range all {
		path := filepath.Join(l.root, f.dir)
		fsprobe.Sweep(path)
		switch err := fsprobe.Try(path, fsprobe.Needs{Overlay: f.mounted, Sync: overlay}); {
		case err != nil && f.dir != ".":
			return fmt.Errorf("directory %s: %w", f.dir, err)
		case err != nil:
			return err
		}
	}
	return nil
}

// errLock gives a failed flock its reason if the file system has no locks.
func errLock(err error) error {
	for _, errno := range []unix.Errno{unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOLCK} {
		if errors.Is(err, errno) {
			return cause.Mark(fmt.Errorf("its file system lacks what Tank needs: file locks (flock): %w: %w",
				err, errdefs.ErrFailedPrecondition), cause.Unfit, "")
		}
	}
	return err
}
