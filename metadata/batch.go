package metadata

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/lockorder"
)

const (
	// deferredDelay is how long after its first change a batch of UpdateDeferred is made durable at the latest.
	deferredDelay = 100 * time.Millisecond
	// maxJoined bounds what has to be run again when a change fails.
	maxJoined = 128
)

// soon is the write transaction that changes are gathered in. Making one durable costs the disk two flushes, whatever is in it.
type pending struct {
	deferred atomic.Bool  // the batch has what UpdateDeferred answered: readers have to see it, and look at nothing else of a batch
	queued   atomic.Int32 // writers that wait for the lock, and will make what they find durable

	mu    lockorder.Mutex // guards what follows; the goroutine that runs changes holds it
	batch *batch          // nil while none is open
}

// batch is one open write transaction with the changes in it.
type batch struct {
	bolt    *bolt.Tx
	changes []func(*Tx) error
	awaited bool          // somebody returns only when it is durable
	final   bool          // it has a change of Update, which may not be run again
	done    chan struct{} // closed when the batch is durable, or err says why it is not
	err     error
}

// Update runs fn in the write transaction, of which there is one at a time, and makes it durable. Nothing is changed
// when fn fails, or when it would leave a record without a holder (errdefs.ErrFailedPrecondition).
func (db *DB) Update(fn func(*Tx) error) error { return db.update(fn, false) }

// Batch is Update for what may be called by many at once: they share one transaction, and with it the time of the disk. Nobody waits
// for others to come. fn is run again when another one of the same transaction fails, so it does nothing but what it does to the Tx.
func (db *DB) Batch(fn func(*Tx) error) error { return db.update(fn, true) }

func (db *DB) update(fn func(*Tx) error, again bool) error {
	b, err := db.gather(fn, again)
	if err != nil {
		return err
	}
	<-b.done
	return b.err
}

// gather has fn join the batch and makes that durable, or leaves this to the next in the queue if fn may run again.
func (db *DB) gather(fn func(*Tx) error, again bool) (*batch, error) {
	db.pending.queued.Add(1)
	db.pending.mu.Lock()
	defer db.pending.mu.Unlock()
	db.pending.queued.Add(-1)
	if b := db.pending.batch; b != nil && len(b.changes) >= maxJoined {
		db.commitBatch()
	}
	b, err := db.join(fn)
	if b != nil {
		b.awaited = b.awaited || err == nil
		b.final = b.final || err == nil && !again
		if b.awaited && (err == nil && !again || db.pending.queued.Load() == 0) {
			db.commitBatch()
		}
	}
	return b, err
}

// UpdateDeferred is Update for releases that come by the hundred, one after another, while somebody holds a lock: it returns
// without waiting for the disk. Whoever begins a transaction after that sees the change. wait returns when it is durable,
// in a tenth of a second or when another transaction begins, with the error if that failed; until then no bytes may be
// deleted, since a crash undoes the change. fn is run again when another one of the same batch fails.
func (db *DB) UpdateDeferred(fn func(*Tx) error) (wait func() error, err error) {
	db.pending.mu.Lock()
	defer db.pending.mu.Unlock()
	begun := !db.pending.deferred.Load()
	b, err := db.join(fn)
	if err != nil {
		return nil, err
	}
	if begun {
		db.pending.deferred.Store(true)
		time.AfterFunc(deferredDelay, func() { db.flush(b) })
	}
	return func() error {
		<-b.done
		return b.err
	}, nil
}

// join runs fn in the open batch, or in a new one. After an error the batch is what it was before; nil if that was none, or if it
// was lost, which those who wait for it are told. soon.mu is held.
func (db *DB) join(fn func(*Tx) error) (b *batch, err error) {
	if b = db.pending.batch; b == nil {
		if b, err = db.openBatch(); err != nil {
			return nil, err
		}
	}
	if err := b.run(fn); err != nil {
		err = errors.Join(err, db.replay(b))
		return db.pending.batch, err
	}
	b.changes = append(b.changes, fn)
	return b, nil
}

// openBatch begins a batch. soon.mu is held.
func (db *DB) openBatch() (b *batch, err error) {
	tx, err := db.begin()
	if err != nil {
		return nil, err
	}
	b = &batch{bolt: tx, done: make(chan struct{})}
	db.pending.batch = b
	return b, nil
}

func (b *batch) run(fn func(*Tx) error) (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	return apply(b.bolt, fn)
}

// replay undoes what a failed change left in the transaction: it begins again and repeats the others. soon.mu is held.
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

// rerun runs all of a batch in a new transaction. soon.mu is held.
func (db *DB) rerun(b *batch) (err error) {
	if b.bolt, err = db.begin(); err != nil {
		return err
	}
	for _, fn := range b.changes {
		if err := b.run(fn); err != nil {
			return errors.Join(err, b.rollback())
		}
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

// Flush makes durable what UpdateDeferred gathered so far.
func (db *DB) Flush() { db.flush(nil) }

// settle makes a batch durable; nil means the one that is open.
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

// settleBatch makes the open batch durable, if there is one. soon.mu is held.
func (db *DB) commitBatch() {
	b := db.pending.batch
	if b == nil {
		return
	}
	if db.spend == nil || b.final {
		db.closeBatch(b, b.commit())
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
		return b.commit()
	}))
}

func (b *batch) commit() (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	defer func() { _ = b.bolt.Rollback() }() // of a panic, which would keep everybody from writing; else there is nothing to undo
	return b.bolt.Commit()
}

// closeBatch tells those who wait. soon.mu is held.
func (db *DB) closeBatch(b *batch, err error) {
	b.err = err
	db.pending.batch = nil
	db.pending.deferred.Store(false)
	close(b.done)
}

// ViewPending is View for short looks: what UpdateDeferred gathered is seen, and not made durable for it. fn reads a few records; it
// keeps writers waiting. What somebody waits for to become durable is seen when it is.
func (db *DB) ViewPending(fn func(*Tx) error) error {
	if seen, err := db.viewPending(fn); seen {
		return err
	}
	return db.ViewCommitted(fn)
}

// glance looks at the batch, if something of it was answered.
func (db *DB) viewPending(fn func(*Tx) error) (seen bool, err error) {
	if !db.pending.deferred.Load() {
		return false, nil
	}
	db.pending.mu.Lock()
	b := db.pending.batch
	if b == nil || b.awaited {
		db.pending.mu.Unlock()
		if b != nil {
			<-b.done
		}
		return false, nil
	}
	defer db.pending.mu.Unlock()
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	return true, fn(&Tx{bolt: b.bolt})
}
