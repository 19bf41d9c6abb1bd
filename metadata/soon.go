package metadata

import (
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// soonDelay is how long after its first change a batch of UpdateSoon is made durable at the latest.
const soonDelay = 100 * time.Millisecond

// soon is the write transaction that UpdateSoon gathers changes in.
type soon struct {
	open atomic.Bool // there is a batch; lets others pass without the lock

	mu    sync.Mutex // guards what follows, and is held by whoever writes
	batch *batch     // nil while none is open
}

// batch is one open write transaction with the changes in it.
type batch struct {
	bolt *bolt.Tx
	fns  []func(*Tx) error
	done chan struct{} // closed when the batch is durable, or err says why it is not
	err  error
}

// UpdateSoon is Update for releases that come by the hundred, one after another, while somebody holds a lock: it returns
// without waiting for the disk. Whoever begins a transaction after that sees the change. wait returns when it is durable,
// in a tenth of a second or when another transaction begins, with the error if that failed; until then no bytes may be
// deleted, since a crash undoes the change. fn is run again when another one of the same batch fails.
func (db *DB) UpdateSoon(fn func(*Tx) error) (wait func() error, err error) {
	db.soon.mu.Lock()
	defer db.soon.mu.Unlock()
	b := db.soon.batch
	if b == nil {
		if b, err = db.openBatch(); err != nil {
			return nil, err
		}
		time.AfterFunc(soonDelay, func() { db.settle(b) })
	}
	if err := b.run(fn); err != nil {
		return nil, errors.Join(err, db.replay(b))
	}
	b.fns = append(b.fns, fn)
	return func() error {
		<-b.done
		return b.err
	}, nil
}

// openBatch begins a batch. soon.mu is held.
func (db *DB) openBatch() (b *batch, err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	tx, err := db.bolt.Begin(true)
	if err != nil {
		return nil, err
	}
	b = &batch{bolt: tx, done: make(chan struct{})}
	db.soon.batch = b
	db.soon.open.Store(true)
	return b, nil
}

func (b *batch) run(fn func(*Tx) error) (err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	return apply(b.bolt, fn)
}

// replay undoes what a failed change left in the transaction: it begins again and repeats the others. soon.mu is held.
func (db *DB) replay(b *batch) (err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	if err := b.bolt.Rollback(); err != nil {
		return err
	}
	if b.bolt, err = db.bolt.Begin(true); err != nil {
		b.bolt = nil
		db.closeBatch(b, err)
		return err
	}
	for _, fn := range b.fns {
		if err := b.run(fn); err != nil {
			_ = b.bolt.Rollback()
			db.closeBatch(b, err)
			return err
		}
	}
	return nil
}

// Settle makes durable what UpdateSoon gathered so far.
func (db *DB) Settle() { db.settle(nil) }

// settle makes a batch durable; nil means the one that is open.
func (db *DB) settle(b *batch) {
	if !db.soon.open.Load() {
		return
	}
	db.soon.mu.Lock()
	defer db.soon.mu.Unlock()
	if b == nil || db.soon.batch == b {
		db.settleBatch()
	}
}

// settleBatch makes the open batch durable, if there is one. soon.mu is held.
func (db *DB) settleBatch() {
	if b := db.soon.batch; b != nil {
		db.closeBatch(b, b.commit())
	}
}

func (b *batch) commit() (err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	defer func() { _ = b.bolt.Rollback() }() // of a panic, which would keep everybody from writing; else there is nothing to undo
	return b.bolt.Commit()
}

// closeBatch tells those who wait. soon.mu is held.
func (db *DB) closeBatch(b *batch, err error) {
	b.err = err
	db.soon.batch = nil
	db.soon.open.Store(false)
	close(b.done)
}
