package rootdir

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// maxWorkers is how many trees are deleted at once in the background. With hundreds, other programs
// would have to wait for the journal of the file system.
const maxWorkers = 4

// queue has the trees that are deleted in the background.
type queue struct {
	mu      sync.Mutex               // guards the fields below; a leaf of the lock order
	waiting []string                 // paths, the oldest first
	taken   uint64                   // how many have left waiting
	busy    map[string]chan struct{} // by path of a tree that is being deleted; closed when the deletion ends
	failed  map[string]error         // by path of a tree that the next sweep tries to delete again
	workers int
	changed chan struct{} // closed when the next deletion ends; nil if nothing waits for it

	counting atomic.Int32 // calls of Count that have not ended
	freed    atomic.Int64 // bytes, since the process began
}

// counter returns the function that counts the bytes that a removal frees. It returns nil while no
// call of Count needs the sum, because counting takes a stat for each file.
func (q *queue) counter() func(bytes int64) {
	if q.counting.Load() == 0 {
		return nil
	}
	return func(bytes int64) { q.freed.Add(bytes) }
}

// put adds trees. It returns how many workers the caller has to start.
func (q *queue) put(paths []string) (start int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.add(paths)
}

// add is put with mu held.
func (q *queue) add(paths []string) (start int) {
	for _, path := range paths {
		if path != "" { // otherwise Aside has deleted the entry in its position
			q.waiting = append(q.waiting, path)
		}
	}
	start = min(maxWorkers-q.workers, len(q.waiting))
	q.workers += start
	return start
}

// retry adds trees, and the trees whose deletion failed. until is the value that taken has when all
// of these have left the queue.
func (q *queue) retry(paths []string) (start int, until uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	start = q.add(slices.AppendSeq(paths, maps.Keys(q.failed)))
	q.failed = nil
	return start, q.taken + uint64(len(q.waiting))
}

// next takes the oldest tree, unless taken has reached until.
func (q *queue) next(until uint64) (path string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.taken >= until {
		return "", false
	}
	return q.take()
}

// nextForWorker takes the oldest tree for a worker. The worker ends when ok is false.
func (q *queue) nextForWorker(ctx context.Context) (path string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() == nil {
		path, ok = q.take()
	}
	if !ok {
		q.workers--
	}
	return path, ok
}

// take moves the oldest tree from waiting to busy. Called with mu held.
func (q *queue) take() (path string, ok bool) {
	if len(q.waiting) == 0 {
		return "", false
	}
	path, q.waiting = q.waiting[0], q.waiting[1:]
	q.taken++
	if q.busy == nil {
		q.busy = map[string]chan struct{}{}
	}
	if q.busy[path] == nil { // a tree may be found left over, and queued, twice
		q.busy[path] = make(chan struct{})
	}
	return path, true
}

// done ends the deletion of a tree. err is the reason if a part of the tree remains.
func (q *queue) done(path string, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if done := q.busy[path]; done != nil {
		close(done)
		delete(q.busy, path)
	}
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
	if err != nil {
		if q.failed == nil {
			q.failed = map[string]error{}
		}
		q.failed[path] = err
	}
}

// state returns a channel for each tree that is being deleted, and the errors of those whose
// deletion failed.
func (q *queue) state() (busy []chan struct{}, failed error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Collect(maps.Values(q.busy)), errors.Join(slices.Collect(maps.Values(q.failed))...)
}

// idle reports whether nothing waits to be deleted or is being deleted.
func (q *queue) idle() bool { return q.ended() == nil }

// ended returns nil if the queue is idle, and otherwise a channel that is closed when the next
// deletion ends.
func (q *queue) ended() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting)+len(q.busy) == 0 {
		return nil
	}
	if q.changed == nil {
		q.changed = make(chan struct{})
	}
	return q.changed
}

// length returns how many trees wait to be deleted.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}
