package metadata

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/internal/outcome"
	"github.com/tank-snapshotter/tank/metadata/internal/released"
)

const (
	// deferredDelay is the longest time from the first change of UpdateDeferred in a batch until the batch is durable.
	deferredDelay = 100 * time.Millisecond
	// maxJoined is the largest number of changes in a batch: all of them run again when one fails.
	maxJoined = 128
)

// pending is the write transaction that collects changes until it is committed. A commit costs the disk two flushes,
// however many changes it has.
type pending struct {
	// deferred is true if the batch has a change for which UpdateDeferred has returned: readers must see that change. A
	// batch without one has nothing that a reader must see.
	deferred atomic.Bool
	// released is what those changes delete; nil without one.
	released atomic.Pointer[released.Set]
	queued   atomic.Int32 // writers that wait for mu; the last of them commits the batch

	mu    lockorder.Mutex // guards batch and what is in it; the goroutine that runs changes holds it
	batch *batch          // nil while none is open
}

// batch is one open write transaction and its changes.
type batch struct {
	bolt    *bolt.Tx
	changes []change
	awaited bool          // a caller of Update or Batch waits for it
	final   bool          // it has a change of Update, which must not run again
	done    chan struct{} // closed when the batch is durable or has failed, after err was set
	err     error
}

// wait returns when the batch is durable or has failed.
func (b *batch) wait() error {
	<-b.done
	return b.err
}

// change is one change of a batch.
type change struct {
	fn       func(*Tx) error
	deferred bool // it came through UpdateDeferred
}

// Update runs fn in the write transaction, of which there is one at a time, and returns when the change is durable. It
// changes nothing if fn fails, or if a record would be left without a holder (errdefs.ErrFailedPrecondition).
func (db *DB) Update(fn func(*Tx) error) error { return db.update(fn, false) }

// Batch is like Update, but callers that arrive together share one transaction, and so one flush of the disk. No caller
// waits for later ones. fn runs again if another function of the same transaction fails, so it must have no
// effect other than on the Tx.
func (db *DB) Batch(fn func(*Tx) error) error { return db.update(fn, true) }

func (db *DB) update(fn func(*Tx) error, repeatable bool) error {
	b, err := db.gather(fn, repeatable)
	if b != nil {
		err = cmp.Or(b.wait(), err)
	}
	return err
}

// gather adds fn to the batch. It then commits the batch, or leaves that to the next writer in the queue if fn may run
// again. It returns what join returns.
func (db *DB) gather(fn func(*Tx) error, repeatable bool) (*batch, error) {
	db.pending.queued.Add(1)
	db.pending.mu.Lock()
	defer db.pending.mu.Unlock()
	db.pending.queued.Add(-1)
	if b := db.pending.batch; b != nil && len(b.changes) >= maxJoined {
		db.commitBatch()
	}
	b, err := db.join(change{fn, false})
	if b != nil {
		b.awaited = b.awaited || err == nil
		b.final = b.final || err == nil && !repeatable
		if b.awaited && (err == nil && !repeatable || db.pending.queued.Load() == 0) {
			db.commitBatch()
		}
	}
	return b, err
}

// UpdateDeferred is like Update, but returns without waiting for the disk. It is for releases that come by the
// hundred, one after another, while the caller holds a lock. Transactions that begin later see the change. The
// function wait returns when the change is durable, or the error if the commit failed; that takes at most a tenth of
// a second. Until then the caller must not delete bytes, because a crash undoes the change. fn runs again if another
// function of the same batch fails.
func (db *DB) UpdateDeferred(fn func(*Tx) error) (wait func() error, err error) {
	b, err := db.joinDeferred(fn)
	if err != nil && b != nil {
		err = cmp.Or(b.wait(), err)
	}
	return b.wait, err
}

// joinDeferred adds fn to the batch, which it leaves open. It returns what join returns.
func (db *DB) joinDeferred(fn func(*Tx) error) (*batch, error) {
	db.pending.mu.Lock()
	defer db.pending.mu.Unlock()
	begun := !db.pending.deferred.Load()
	b, err := db.join(change{fn, true})
	if err == nil && begun {
		db.pending.deferred.Store(true)
		time.AfterFunc(deferredDelay, func() { db.flush(b) })
	}
	return b, err
}

// join runs fn in the open batch, or in a new one. After an error the batch has the changes it had before; join returns
// it only if a caller waits for one of them, because fn may have failed due to that change, which no reader sees yet.
// The error must wait for the batch as well. The caller holds pending.mu.
func (db *DB) join(c change) (b *batch, err error) {
	if b = db.pending.batch; b == nil {
		tx, err := db.begin()
		if err != nil {
			return nil, err
		}
		b = &batch{bolt: tx, done: make(chan struct{})}
		db.pending.batch = b
	}
	drops, err := b.run(c)
	if err != nil {
		if err = errors.Join(err, db.replay(b)); db.pending.batch == nil || !b.awaited {
			return nil, err
		}
		return b, err
	}
	b.changes = append(b.changes, c)
	db.release(b, drops)
	return b, nil
}

// run runs a change in the transaction of the batch. It returns what a deferred one deletes.
func (b *batch) run(c change) (drops map[string]struct{}, err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	if c.deferred {
		drops = map[string]struct{}{}
	}
	return drops, apply(b.bolt, c.fn, drops)
}

// release has readers leave out what a deferred change has deleted. The caller holds pending.mu.
func (db *DB) release(b *batch, drops map[string]struct{}) {
	if len(drops) == 0 {
		return
	}
	r := db.pending.released.Load()
	if r == nil || r.ID != b.bolt.ID() {
		r = released.New(b.bolt.ID())
		db.pending.released.Store(r)
	}
	r.Add(drops)
}

// replay removes what a failed change left in the transaction: it begins a new one and repeats the other changes. The
// caller holds pending.mu.
func (db *DB) replay(b *batch) (err error) {
	if err := b.rollback(); err != nil || len(b.changes) == 0 {
		db.closeBatch(b, err)
		return err
	}
	if err := db.rerun(b); err != nil {
		db.closeBatch(b, err)
		return err
	}
	return nil
}

// rerun repeats all changes of a batch in a new transaction. The caller holds pending.mu.
func (db *DB) rerun(b *batch) (err error) {
	if b.bolt, err = db.begin(); err != nil {
		return err
	}
	for _, c := range b.changes {
		drops, err := b.run(c)
		if err != nil {
			return errors.Join(err, b.rollback())
		}
		db.release(b, drops)
	}
	return nil
}

func (db *DB) begin() (tx *bolt.Tx, err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	if db.bolt.IsReadOnly() {
		return nil, cause.Mark(fmt.Errorf("metadata: read-only: %w", errdefs.ErrFailedPrecondition), cause.ReadOnly, "")
	}
	return db.bolt.Begin(true)
}

func (b *batch) rollback() (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	return b.bolt.Rollback()
}

// Flush commits the pending changes and returns when they are durable.
func (db *DB) Flush() { db.flush(nil) }

// flush commits a batch if it is still open; nil means the open one.
func (db *DB) flush(b *batch) {
	if !db.pending.deferred.Load() {
		return
	}
	db.pending.mu.Lock()
	defer db.pending.mu.Unlock()
	if b == nil || db.pending.batch == b {
		db.commitBatch()
	}
}

// commitBatch commits the open batch, if there is one. The caller holds pending.mu.
func (db *DB) commitBatch() {
	b := db.pending.batch
	if b == nil {
		return
	}
	if db.spend == nil || b.final {
		db.closeBatch(b, db.commit(b))
		return
	}
	tried := false
	db.closeBatch(b, db.spend(func() error {
		if tried {
			if err := db.rerun(b); err != nil {
				return err
			}
		}
		tried = true
		return db.commit(b)
	}))
}

// commit writes a batch to the file. Without success it ends the transaction all the same, because that would block all
// writers.
func (db *DB) commit(b *batch) (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	defer func() { _ = b.bolt.Rollback() }() // does nothing after a commit
	return outcome.Commit(b.bolt, func() error { return db.fs.Commit(db.path, b.bolt.Commit) }, db.bolt.View)
}

// closeBatch ends a batch and wakes the callers that wait for it. The caller holds pending.mu.
func (db *DB) closeBatch(b *batch, err error) {
	b.err = err
	if err == nil {
		db.resident.Keep(db.bolt)
	}
	db.pending.batch = nil
	db.pending.deferred.Store(false)
	db.pending.released.Store(nil)
	close(b.done)
}

// ViewPending is like View, but neither commits pending changes nor waits for a commit: it leaves out what
// UpdateDeferred has released. So it answers while the disk stands still. What it sees may come back after a crash, so
// the caller must not delete bytes because of it.
func (db *DB) ViewPending(fn func(*Tx) error) (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	r := db.pending.released.Load() // before the transaction begins: see released.Set
	return db.bolt.View(func(btx *bolt.Tx) error {
		tx := &Tx{entries: entries{bolt: btx}}
		if r != nil && btx.ID() < r.ID {
			tx.released, tx.change = r, r.Now()
		}
		return fn(tx)
	})
}
