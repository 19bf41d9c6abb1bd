package unpacktest

import (
	"context"
	"sync/atomic"
)

// Countdown is a context that is cancelled when its Err is called for the end-th time.
type Countdown struct {
	context.Context //nolint:containedctx // it is a context itself
	cancel          context.CancelFunc
	calls           atomic.Int64
	end             int
}

// NewCountdown returns a Countdown. If end is 0, it is never cancelled.
func NewCountdown(end int) *Countdown {
	ctx, cancel := context.WithCancel(context.Background())
	return &Countdown{Context: ctx, cancel: cancel, end: end}
}

// Err returns the error of the context.
func (c *Countdown) Err() error {
	if c.calls.Add(1) == int64(c.end) {
		c.cancel()
	}
	return c.Context.Err()
}

// Calls returns how often Err was called.
func (c *Countdown) Calls() int { return int(c.calls.Load()) }

// Cancel cancels the context, if it was not, and releases it.
func (c *Countdown) Cancel() { c.cancel() }
