// Package budget shares the memory of a process among pieces of work that learn while they run how much they need.
//
// It owns nothing on disk.
//
// Its invariant: at most one claim is over the budget, and its further memory is not counted. The counted
// memory of all claims together is never more than the budget. A claim that needs more than is left waits
// until it can be the one that is over the budget.
//
// The surprising rule: this package does not bound the claim that is over the budget. Each piece of work has its own
// limit, so the memory of the process is bounded by the budget and one such limit.
package budget

import (
	"context"
	"sync"
)

// Budget is an amount of memory in bytes.
type Budget struct {
	over chan struct{} // has a value while a claim is over the budget

	mu   sync.Mutex // guards free
	free int64
}

// New returns a budget of a number of bytes.
func New(bytes int64) *Budget { return &Budget{over: make(chan struct{}, 1), free: bytes} }

// Claim is the memory of one piece of work. Several goroutines may call its methods.
type Claim struct {
	b     *Budget
	turn  chan struct{} // has a value while a goroutine is in Grow; guards the fields below
	taken int64
	over  bool
	// ready waits until the work no longer depends on other processes, because from then on other claims may wait
	// for this work. nil: the work never depends on them.
	ready func(context.Context) error
}

// Claim returns an empty claim. Grow calls ready before the claim goes over the budget. ready returns when
// the work no longer waits for anything outside the process. nil: the work never waits for that.
func (b *Budget) Claim(ready func(context.Context) error) *Claim {
	return &Claim{b: b, turn: make(chan struct{}, 1), ready: ready}
}

// Grow adds memory to the claim, in bytes. If too little is left, it waits until no other claim is over the
// budget. It returns the error of ready, or the cause of the end of ctx.
func (c *Claim) Grow(ctx context.Context, bytes int64) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-c.turn }()
	if c.over || c.take(bytes) {
		return nil
	}
	if c.ready != nil {
		if err := c.ready(ctx); err != nil {
			return err
		}
	}
	select {
	case c.b.over <- struct{}{}:
		c.over = true
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

// Release returns all memory of the claim to the budget. No Grow may be running.
func (c *Claim) Release() {
	c.b.mu.Lock()
	c.b.free += c.taken
	c.taken = 0
	c.b.mu.Unlock()
	if c.over {
		c.over = false
		<-c.b.over
	}
}
