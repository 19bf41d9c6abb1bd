// Package budget shares the memory of a process among pieces of work whose need becomes known while they run.
//
// It owns nothing on disk.
//
// Its invariant: all claims together have no more than the budget and what one of them has on top. A claim that the
// budget has no room for waits until it is the only one of that kind.
//
// The surprising rule: a claim on top of the budget is not bounded here. What one piece of work may need at most is its
// own limit, so that the two together bound the process.
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

// Claim is what one piece of work has. It is for one goroutine.
type Claim struct {
	b     *Budget
	taken int64
	alone bool
	// ready waits until the work needs nobody else to go on, since others wait for one that is alone; nil: it never does.
	ready func(context.Context) error
}

// Claim returns a claim of nothing. ready is called before the claim is alone: it returns when the work waits for
// nothing outside the process any more. nil: it never does.
func (b *Budget) Claim(ready func(context.Context) error) *Claim { return &Claim{b: b, ready: ready} }

// Grow takes more memory for the claim. It waits where the budget has no room for it and another claim is on top of it.
// The error is that of ready, or the cause of the end of ctx.
func (c *Claim) Grow(ctx context.Context, bytes int64) error {
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

// Release gives back all that the claim has.
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
