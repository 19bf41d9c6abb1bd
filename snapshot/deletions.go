package snapshot

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
)

const (
	// maxDeletions is how many trees are deleted at once in the background: hundreds would keep everybody from the disk's journal.
	maxDeletions = 4
	// manyDeletions is how many trees may wait to be deleted before those who make new ones have to help.
	manyDeletions = 1024
)

// deletions are the trees below staging that are deleted in the background.
type deletions struct {
	mu      sync.Mutex // guards what follows
	queue   []string   // paths, oldest first
	busy    map[string]struct{}
	workers int
}

// put adds trees. It returns how many workers the caller has to start.
func (d *deletions) put(paths []string) (start int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = append(d.queue, paths...)
	start = min(maxDeletions-d.workers, len(d.queue))
	d.workers += start
	return start
}

// next takes the oldest tree, if at least this many wait.
func (d *deletions) next(least int) (path string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.take(least)
}

// nextOf is next for a worker, which ends with false.
func (d *deletions) nextOf(ctx context.Context) (path string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() == nil {
		path, ok = d.take(1)
	}
	if !ok {
		d.workers--
	}
	return path, ok
}

// take is next with mu held.
func (d *deletions) take(least int) (path string, ok bool) {
	if len(d.queue) < least {
		return "", false
	}
	path, d.queue = d.queue[0], d.queue[1:]
	if d.busy == nil {
		d.busy = map[string]struct{}{}
	}
	d.busy[path] = struct{}{}
	return path, true
}

func (d *deletions) done(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, path)
}

// takeAll empties the queue. What is being deleted at the moment is among the answer.
func (d *deletions) takeAll() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := append(slices.Collect(maps.Keys(d.busy)), d.queue...)
	d.queue = nil
	return all
}

// trash moves directories, whose records are gone, into staging and deletes them in the background.
func (s *Store) trash(paths ...string) error {
	var moved []string
	var errs []error
	for _, p := range paths {
		to := s.stage("trash")
		switch err := renameTree(p, to); {
		case err == nil:
			moved = append(moved, to)
		case !errors.Is(err, os.ErrNotExist):
			errs = append(errs, err)
		}
	}
	s.deleteSoon(moved)
	return errors.Join(errs...)
}

// deleteSoon deletes trees below staging in the background.
func (s *Store) deleteSoon(paths []string) {
	for range s.deletions.put(paths) {
		s.background("deletion", func(ctx context.Context) error {
			var errs []error
			for {
				path, ok := s.deletions.nextOf(ctx)
				if !ok {
					return errors.Join(errs...)
				}
				errs = append(errs, s.removeTaken(path))
			}
		})
	}
}

// helpDelete deletes one tree if very many wait. Whoever makes a directory does this first, so that directories can't be made and
// removed faster than they are deleted; whoever removes one does not, since containerd's collector removes under a lock.
func (s *Store) helpDelete() {
	if path, ok := s.deletions.next(manyDeletions); ok {
		_ = s.removeTaken(path) // which stays in staging for the next sweep to say why
	}
}

func (s *Store) removeTaken(path string) error {
	defer s.deletions.done(path)
	return contained("deletion", func() error { return s.removeOne(path) })
}

// removeEach deletes trees below staging. A sweep and the background may be at the same one.
func (s *Store) removeEach(ctx context.Context, paths []string) error {
	var errs []error
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, s.removeOne(p))
	}
	return errors.Join(errs...)
}

func (s *Store) removeOne(path string) error {
	defer s.locks.lock(path)()
	return removeAll(path)
}
