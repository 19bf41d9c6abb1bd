package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/staging"
)

// pools are the directories of the root that may be file systems, or project quotas, of their own. What belongs into
// one is built in it and deleted in it, so that no rename leaves it. See docs/adr/0017.
var pools = []string{"layers", "rootfs", "snapshots"}

// openPools makes the pools that are missing, and finds out which are not on the file system of the database.
func (s *Store) openPools() error {
	var home unix.Stat_t
	if err := unix.Stat(s.root, &home); err != nil {
		return err
	}
	s.apart = map[string]bool{}
	if s.opts.ReadOnly {
		return nil
	}
	for _, pool := range pools {
		var st unix.Stat_t
		err := unix.Lstat(s.path(pool), &st)
		if errors.Is(err, unix.ENOENT) {
			err = errors.Join(os.Mkdir(s.path(pool), 0o700), unix.Lstat(s.path(pool), &st))
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fmt.Errorf("%s/: not a directory: mount or bind another disk there instead of a link: %w",
				pool, errdefs.ErrFailedPrecondition)
		}
		s.apart[pool] = st.Dev != home.Dev
	}
	return os.MkdirAll(s.path("staging"), 0o700)
}

// stage returns the path of a new name in a pool: for something that becomes an entry of it.
func (s *Store) stage(pool, what string) string { return s.names.In(s.path(pool), what) }

// stageBeside returns the path of a new name in the directory of path.
func (s *Store) stageBeside(path, what string) string { return s.names.In(filepath.Dir(path), what) }

// leftDelay is how long after the opening a process looks for what earlier ones left. A command that only answers from
// its records is gone by then, and pays nothing for looking; a sweep does not wait for it.
const leftDelay = 500 * time.Millisecond

// removeLeft deletes in the background what an earlier process left: in each pool (I4), and in the staging directory in
// which older versions built everything, which now holds what a pull needs for itself.
func (s *Store) removeLeft() error {
	old, err := os.ReadDir(s.path("staging"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var left []string
	for _, e := range old { // listed before anything new can be made there
		left = append(left, s.path("staging", e.Name()))
	}
	if len(left) > 0 {
		s.deleteSoon(left)
	}
	s.wg.Add(1)
	s.leftovers = time.AfterFunc(leftDelay, func() {
		defer s.wg.Done()
		s.background("leftovers", func(ctx context.Context) error {
			left, err := s.left(ctx)
			s.deleteSoon(left)
			return err
		})
	})
	return nil
}

// left lists what earlier processes left in the pools.
func (s *Store) left(ctx context.Context) (paths []string, err error) {
	dirs := []string{s.path("layers"), s.path("snapshots"), s.path("rootfs")}
	algs, err := os.ReadDir(s.path("rootfs"))
	for _, alg := range algs {
		if alg.IsDir() && !staging.Is(alg.Name()) && !staging.Foreign(alg.Name()) {
			dirs = append(dirs, s.path("rootfs", alg.Name()))
		}
	}
	for _, dir := range dirs {
		found, lerr := s.names.Left(ctx, dir)
		paths, err = append(paths, found...), errors.Join(err, lerr)
	}
	return paths, err
}

// syncEntry makes a new entry of a pool durable before its record is, if they lie on different file systems. On one
// file system the sync of the record covers the directory as well.
func (s *Store) syncEntry(pool, path string) error {
	if !s.apart[pool] {
		return nil
	}
	names, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range names {
		if e.IsDir() {
			err = errors.Join(err, syncDir(filepath.Join(path, e.Name())))
		}
	}
	return errors.Join(err, syncDir(path), syncDir(s.path(pool)))
}

// syncfs forces to the disk what was written to the pools of layers and rootfs, on each file system once.
func (s *Store) syncfs() error {
	done := map[uint64]bool{}
	for _, pool := range []string{"layers", "rootfs"} {
		if err := s.syncPool(pool, done); err != nil {
			return fmt.Errorf("root %s: %s: syncfs: %w", s.root, pool, err)
		}
	}
	return nil
}

func (s *Store) syncPool(pool string, done map[uint64]bool) error {
	f, err := os.Open(s.path(pool))
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if done[st.Dev] {
		return nil
	}
	done[st.Dev] = true
	return syncfsOf(f)
}

// canClone reports whether a copy of a layer can share its extents, in one of the places where layers are copied to.
func (s *Store) canClone() bool {
	return canClone(s.path("layers"), s.path("snapshots")) || canClone(s.path("layers"), s.path("rootfs"))
}
