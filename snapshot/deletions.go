package snapshot

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
)

const (
	// maxDeletions is how many trees are deleted at once in the background: hundreds would keep everybody from the disk's journal.
	maxDeletions = 4
	// manyDeletions is how many trees may wait to be deleted before those who make new ones wait as well, for deletionPause at most.
	manyDeletions = 1024
	deletionPause = 100 * time.Millisecond
)

// deletions are the trees below staging that are deleted in the background.
type deletions struct {
	mu      sync.Mutex // guards what follows
	queue   []string   // paths, oldest first
	taken   uint64     // how many have left the queue
	busy    map[string]struct{}
	failed  map[string]error // for the next sweep to try again
	workers int
}

// put adds trees. It returns how many workers the caller has to start.
func (d *deletions) put(paths []string) (start int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.add(paths)
}

func (d *deletions) add(paths []string) (start int) {
	d.queue = append(d.queue, paths...)
	start = min(maxDeletions-d.workers, len(d.queue))
	d.workers += start
	return start
}

// again adds trees, and those that could not be deleted. until is what taken will be when all of these have left the queue.
func (d *deletions) again(paths []string) (start int, until uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	start = d.add(slices.AppendSeq(paths, maps.Keys(d.failed)))
	d.failed = nil
	return start, d.taken + uint64(len(d.queue))
}

// next takes the oldest tree, unless so many were taken.
func (d *deletions) next(until uint64) (path string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.taken >= until {
		return "", false
	}
	return d.take()
}

// nextOf takes the oldest tree for a worker, which ends with false.
func (d *deletions) nextOf(ctx context.Context) (path string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() == nil {
		path, ok = d.take()
	}
	if !ok {
		d.workers--
	}
	return path, ok
}

// take is called with mu held.
func (d *deletions) take() (path string, ok bool) {
	if len(d.queue) == 0 {
		return "", false
	}
	path, d.queue = d.queue[0], d.queue[1:]
	d.taken++
	if d.busy == nil {
		d.busy = map[string]struct{}{}
	}
	d.busy[path] = struct{}{}
	return path, true
}

func (d *deletions) done(path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, path)
	if err != nil {
		if d.failed == nil {
			d.failed = map[string]error{}
		}
		d.failed[path] = err
	}
}

// state returns the trees that are just being deleted, and why others could not be.
func (d *deletions) state() (busy []string, failed error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.busy)), errors.Join(slices.Collect(maps.Values(d.failed))...)
}

func (d *deletions) many() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queue) >= manyDeletions
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
func (s *Store) deleteSoon(paths []string) { s.startDeletions(s.deletions.put(paths)) }

func (s *Store) startDeletions(workers int) {
	for range workers {
		s.background("deletion", func(ctx context.Context) error {
			for {
				path, ok := s.deletions.nextOf(ctx)
				if !ok {
					return nil
				}
				if err := s.removeTaken(path); err != nil {
					log.G(ctx).WithError(err).Warnf("deletion of %s", path)
				}
			}
		})
	}
}

// deleteAll deletes trees below staging, and what waits to be deleted already, together with the background: nothing leaves the queue when
// ctx ends. It returns when all of them are gone, with the reasons of those that are not.
func (s *Store) deleteAll(ctx context.Context, paths []string) error {
	workers, until := s.deletions.again(paths)
	s.startDeletions(workers)
	for ctx.Err() == nil {
		path, ok := s.deletions.next(until)
		if !ok {
			break
		}
		_ = s.removeTaken(path) // state has it
	}
	busy, _ := s.deletions.state()
	for _, path := range busy {
		if ctx.Err() == nil {
			s.locks.lock(path)()
		}
	}
	_, failed := s.deletions.state()
	return errors.Join(ctx.Err(), failed)
}

// awaitDeletions makes whoever is about to make a directory wait while very many are to be deleted, so that directories can't be made and
// removed much faster than they are deleted. Those who remove do not wait: containerd's collector removes under a lock. Nobody waits long.
func (s *Store) awaitDeletions(ctx context.Context) {
	const step = deletionPause / 20
	for waited := time.Duration(0); waited < deletionPause && s.deletions.many(); waited += step {
		select {
		case <-ctx.Done():
			return
		case <-time.After(step):
		}
	}
}

func (s *Store) removeTaken(path string) error {
	err := contained("deletion", func() error {
		defer s.locks.lock(path)()
		return removeAll(path)
	})
	s.deletions.done(path, err)
	return err
}
