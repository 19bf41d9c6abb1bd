package interrupt

import (
	"context"
	"sync/atomic"
)

// shared counts the steps of work that many calls may wait for.
var shared atomic.Uint64

// ShareStep counts a step of work that many calls may wait for, whichever of them began it.
func ShareStep() { shared.Add(1) }

// Shared returns a number that grows while such work goes on.
func Shared() uint64 { return shared.Load() }

type workKey struct{}

// work counts the steps of the loops and copies that have one context. nil counts nothing of its own.
type work struct{ steps atomic.Uint64 }

func (w *work) step() {
	if w != nil {
		w.steps.Add(1)
	}
}

// Step counts a step of a loop that does not use Every or Copy.
func Step(ctx context.Context) { workOf(ctx).step() }

func workOf(ctx context.Context) *work {
	w, _ := ctx.Value(workKey{}).(*work)
	return w
}

// Watch returns a context, and a function that returns a number which grows while a loop or a copy with
// that context goes on.
func Watch(ctx context.Context) (context.Context, func() uint64) {
	w := &work{}
	return context.WithValue(ctx, workKey{}, w), w.steps.Load
}
