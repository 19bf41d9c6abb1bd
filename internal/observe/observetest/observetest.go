// Package observetest is an observe.Observer for tests that records every operation.
//
// It owns nothing on disk.
//
// Its invariant: an operation appears in the list when it ends; those that have begun and not ended
// are counted by Open.
//
// The surprising rule: an operation that ends twice is a fault of the code under test, so the
// Recorder fails the test.
package observetest

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/tank-snapshotter/tank/internal/observe"
)

// Operation is one operation that has ended.
type Operation struct {
	observe.Event
	Result observe.Result
}

// Recorder records operations. Make one with New.
type Recorder struct {
	t testing.TB

	mu    sync.Mutex // guards the fields below
	open  int
	ended []Operation
}

// New returns an empty Recorder for a test.
func New(t testing.TB) *Recorder { return &Recorder{t: t} }

// Begin implements observe.Observer.
func (r *Recorder) Begin(ctx context.Context, e observe.Event) (context.Context, func(observe.Result)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	ended := false
	return ctx, func(res observe.Result) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if ended {
			r.t.Errorf("operation %+v ended twice", e)
			return
		}
		ended = true
		r.open--
		r.ended = append(r.ended, Operation{e, res})
	}
}

// Open returns how many operations have begun and not ended.
func (r *Recorder) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

// Ended returns the operations of a kind that have ended, in the order in which they did.
func (r *Recorder) Ended(kind observe.Kind) (ops []Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops = slices.Clone(r.ended)
	return slices.DeleteFunc(ops, func(op Operation) bool { return op.Kind != kind })
}

// Reset forgets the operations that have ended.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = nil
}
