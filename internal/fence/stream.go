package fence

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/panics"
)

// Turns records whose turn it is in a stream: that of the client, which the work waits for while it
// sends or receives a message, or that of the work.
type Turns struct {
	mu    sync.Mutex // guards the fields below
	outer bool       // the work waits for the client
	steps uint64     // messages that were sent or received
	left  bool       // the call was answered: there is no client any longer
}

// Client calls send or receive, which may take as long as the client likes. It returns
// errdefs.ErrUnavailable if the call was answered before.
func (t *Turns) Client(pass func() error) error {
	if err := t.begin(); err != nil {
		return err
	}
	defer t.end()
	return pass()
}

func (t *Turns) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left {
		return fmt.Errorf("stream: answered before: %w", errdefs.ErrUnavailable)
	}
	t.outer = true
	return nil
}

func (t *Turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outer = false
	t.steps++
}

// seen returns a number that changes with each message, and whether it is the client's turn.
func (t *Turns) seen() (steps uint64, client bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.steps, t.outer
}

// leave reports whether the call may be answered: not while a message is passed.
func (t *Turns) leave() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = !t.outer
	return t.left
}

// Stream returns the error of work, which serves a stream and uses Client of turns for each message.
// It returns errdefs.ErrUnavailable if it is the turn of the work for longer than the limit and
// c.Progress does not change; then work goes on without a client. It does not use Key, Subject and
// Undo of c.
func (f *Fence) Stream(ctx context.Context, c Call, turns *Turns, work func() error) error {
	waits := uint64(0) // grows while the client has its turn
	limit := newTimer(f.limit, func() uint64 {
		steps, client := turns.seen()
		if client {
			waits++
		}
		steps += waits
		if c.Progress != nil {
			steps += c.Progress()
		}
		return steps
	})
	defer limit.stop()
	if err := c.Class.enter(ctx, c.Name, limit); err != nil {
		return err
	}
	done := make(chan error, 1)
	var mu sync.Mutex // guards left and ended
	var left, ended bool
	f.work.Go(func() {
		err := panics.Call(c.Name, work)
		mu.Lock()
		defer mu.Unlock()
		ended = true
		if left {
			c.Class.left.Add(-1)
		}
		<-c.Class.slots
		done <- err
	})
	for {
		select {
		case err := <-done:
			return err
		case <-limit.tick():
			if !limit.expired() {
				continue
			}
			mu.Lock()
			if left = !ended && turns.leave(); left {
				c.Class.left.Add(1)
			}
			mu.Unlock()
			if left {
				return fmt.Errorf("%s: no progress within %s: %w", c.Name, f.limit, errdefs.ErrUnavailable)
			}
		}
	}
}
