// Package outcome tells a commit that did not happen from one that may have happened although it
// returned an error.
//
// It owns nothing on disk.
//
// Its invariant: an error of Commit that Uncertain does not report belongs to a transaction of which
// nothing can be read, now or after a crash.
//
// The surprising rule: a database that flushes its last page without success has made its change
// visible. After a crash the change may be there or not, so bytes that its records name must stay, and
// it must not be made a second time.
package outcome

import "errors"

// Tx is a write transaction of bbolt. The numbers of transactions rise.
type Tx interface {
	ID() int
	Rollback() error
}

// Commit runs commit, which commits tx. If that fails, Commit rolls tx back, looks with view which
// transaction was the last, and returns an error that Uncertain reports if it was tx.
func Commit[T Tx](tx T, commit func() error, view func(func(T) error) error) error {
	number := tx.ID()
	err := commit()
	if err == nil {
		return nil
	}
	_ = tx.Rollback() // it may be closed already
	last := number    // as long as nobody knows
	_ = view(func(tx T) error {
		last = tx.ID()
		return nil
	})
	if last >= number {
		err = uncertain{err}
	}
	return err
}

type uncertain struct{ error }

func (u uncertain) Unwrap() error { return u.error }

// Uncertain reports whether an error comes from a commit whose changes may be there all the same.
func Uncertain(err error) bool {
	var u uncertain
	return errors.As(err, &u)
}
