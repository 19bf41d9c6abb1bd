// Package budget shares the memory of a process among pieces of work whose need becomes known while they run.
//
// It owns nothing on disk.
//
// Its invariant: at most one claim is on top of the budget, which means that its memory is no longer counted;
// the counted memory of all claims together is never more than the budget. A claim that needs more than the
// budget has left waits until it can be the one on top.
//
// The surprising rule: the claim on top is not bounded here. Each piece of work has a limit of its own, so that the
// budget and one such limit together bound the process.
package budget

import (
	"context"
	"sync"
)

// Budget is an amount of memory in bytes.
type Budget struct {
	alone chan struct{} // has the claim on top

	mu   sync.Mutex // guards free
	free int64
}

// New returns a budget of so many bytes.
func New(bytes int64) *Budget { return &Budget{alone: make(chan struct{}, 1), free: bytes} }

// Claim is what one piece of work has. Several goroutines may let it grow, one after the other.
type Claim struct {
	b     *Budget
	turn  chan struct{} // holds one while a goroutine lets the claim grow, and guards the fields below
	taken int64
	alone bool
	// ready waits until the work no longer depends on other processes, because other claims may wait for it
	// from then on; nil: the work never depends on any.
	ready func(context.Context) error
}

// Claim returns an empty claim. ready is called before the claim goes on top of the budget, and returns when the work
// no longer waits for anything outside the process. nil: the work never does.
func (b *Budget) Claim(ready func(context.Context) error) *Claim {
	return &Claim{b: b, turn: make(chan struct{}, 1), ready: ready}
}

// Grow takes more memory for the claim. If the budget has too little left, it waits until no other claim is
// on top. The error is that of ready, or the cause of the end of ctx.
func (c *Claim) Grow(ctx context.Context, bytes int64) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-c.turn }()
	if c.alone || c.take(bytes) {
		return nil
	}
	if c.ready != nil {
		if err := c.ready(ctx); err != nil {
			return err
		}
	}
	select {
	case c.b.alone <- struct{}{}:
		c.alone = true
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Claim) take(bytes int64) bool {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if bytes > c.b.free {
		return false
	}
	c.b.free -= bytes
	c.taken += bytes
	return true
}

// Release gives back all memory of the claim, when nothing lets it grow any more.
func (c *Claim) Release() {
	c.b.mu.Lock()
	c.b.free += c.taken
	c.taken = 0
	c.b.mu.Unlock()
	if c.alone {
		c.alone = false
		<-c.b.alone
	}
}
