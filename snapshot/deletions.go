package snapshot

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/reserve"
)

const (
	// maxDeletions is how many trees are deleted at once in the background: hundreds would keep everybody from the disk's journal.
	maxDeletions = 4
	// manyDeletions is how many trees may wait to be deleted before those who make new ones wait as well, for deletionPause at most.
	manyDeletions = 1024
	deletionPause = 100 * time.Millisecond
)

// deletions are the trees that are deleted in the background. They have staged names.
type deletions struct {
	mu      sync.Mutex               // guards what follows
	queue   []string                 // paths, oldest first
	taken   uint64                   // how many have left the queue
	busy    map[string]chan struct{} // closed when the tree was dealt with
	failed  map[string]error         // the next sweep tries these again; a leftover.Error lists the files
	workers int

	counting atomic.Int32 // how many callers of Count want to know what is freed
	freed    atomic.Int64 // bytes, since the process began
}

// counter returns what counts the bytes that a removal frees; nil while nobody wants to know, because that takes a stat
// for each file.
func (d *deletions) counter() func(bytes int64) {
	if d.counting.Load() == 0 {
		return nil
	}
	return func(bytes int64) { d.freed.Add(bytes) }
}

// Count counts the bytes of disk blocks that deletions free from now on, until the function that it returns is called.
// That function returns their sum.
func (s *Store) Count() (end func() int64) {
	d := &s.deletions
	d.counting.Add(1)
	before := d.freed.Load()
	return func() int64 {
		defer d.counting.Add(-1)
		return d.freed.Load() - before
	}
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
		d.busy = map[string]chan struct{}{}
	}
	if d.busy[path] == nil { // a tree may be found left over, and put here, twice
		d.busy[path] = make(chan struct{})
	}
	return path, true
}

func (d *deletions) done(path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if done := d.busy[path]; done != nil {
		close(done)
		delete(d.busy, path)
	}
	if err != nil {
		if d.failed == nil {
			d.failed = map[string]error{}
		}
		d.failed[path] = err
	}
}

// state returns a channel for each tree that is just being deleted, and why others could not be.
func (d *deletions) state() (busy []chan struct{}, failed error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.busy)), errors.Join(slices.Collect(maps.Values(d.failed))...)
}

// idle reports whether nothing waits to be deleted or is being deleted.
func (d *deletions) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queue)+len(d.busy) == 0
}

func (d *deletions) many() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queue) >= manyDeletions
}

// trash moves directories, whose records are gone, aside and deletes them in the background.
func (s *Store) trash(paths ...string) error {
	var moved []string
	var errs []error
	for _, p := range paths {
		to, err := s.aside(p)
		if to != "" {
			moved = append(moved, to)
		}
		errs = append(errs, err)
	}
	s.deleteSoon(moved)
	return errors.Join(errs...)
}

// aside gives a directory, whose record is gone, a staged name. It returns "" when there is nothing left to delete.
// Where the directory can't be renamed, because the disk has no room for a name or a flag forbids it, it is emptied
// where it lies.
func (s *Store) aside(path string) (string, error) {
	to := s.stageBeside(path, "trash")
	err := renameTree(path, to)
	switch {
	case err == nil:
		return to, nil
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), reserve.Full(err):
		return "", removeAll(s.ctx(), path, s.deletions.counter())
	}
	return "", err
}

// deleteSoon deletes trees in the background.
func (s *Store) deleteSoon(paths []string) { s.startDeletions(s.deletions.put(paths)) }

func (s *Store) startDeletions(workers int) {
	for range workers {
		s.background("deletion", func(ctx context.Context) error {
			for {
				path, ok := s.deletions.nextOf(ctx)
				if !ok {
					return nil
				}
				if err := s.removeTaken(ctx, path); err != nil && ctx.Err() == nil {
					s.logLeft(ctx, path, err)
				}
			}
		})
	}
}

// logLeft logs that a deletion is incomplete. Files that a flag already protected from an earlier process are logged at
// debug level, because gc lists them and every opening would repeat the warning.
func (s *Store) logLeft(ctx context.Context, path string, err error) {
	left, _ := leftover.Split(err)
	if left != nil && left.Protected && !s.names.Own(filepath.Base(path)) {
		log.G(ctx).WithError(err).Debug("deletion")
		return
	}
	log.G(ctx).WithError(err).Warn("deletion")
}

// deleteAll deletes trees, and what waits to be deleted already, together with the background: nothing leaves the queue
// when ctx ends. It returns when all of them are gone, with the reasons of those that are not.
func (s *Store) deleteAll(ctx context.Context, paths []string) error {
	workers, until := s.deletions.again(paths)
	s.startDeletions(workers)
	for ctx.Err() == nil {
		path, ok := s.deletions.next(until)
		if !ok {
			break
		}
		_ = s.removeTaken(ctx, path) // the error is recorded in state
	}
	busy, _ := s.deletions.state()
	for _, done := range busy {
		select {
		case <-ctx.Done():
		case <-done:
		}
	}
	_, failed := s.deletions.state()
	return leftover.Join(ctx.Err(), failed)
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

func (s *Store) removeTaken(ctx context.Context, path string) error {
	err := contained("deletion", func() error {
		defer s.locks.lock(path)()
		return removeAll(ctx, path, s.deletions.counter())
	})
	if err != nil && ctx.Err() != nil { // the next sweep or opening of the root continues
		s.deletions.done(path, nil)
		s.deleteSoon([]string{path})
		return ctx.Err()
	}
	s.deletions.done(path, err)
	return err
}
