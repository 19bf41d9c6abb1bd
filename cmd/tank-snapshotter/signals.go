package main

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// endWithin is how long a command may take to end in order after the first signal. After that the process ends at once,
// which is safe, because Tank may be killed at any time. So code that cannot be cancelled, such as a write into a pipe
// that nobody reads, does not keep a command alive.
const endWithin = 2 * time.Second

// ending is the way in which the process ends after a signal. The zero value is right for every command but serve.
type ending struct {
	inOrder atomic.Bool // serve ends the process itself
}

// context returns a context that ends with the first SIGINT or SIGTERM. A second signal ends the process at once.
func (e *ending) context() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	finished := make(chan struct{})
	context.AfterFunc(ctx, func() {
		stop() // the default action of signals is back
		select {
		case <-finished:
		case <-time.After(endWithin):
			if !e.inOrder.Load() {
				giveUp("not ended within " + endWithin.String() + " of a signal: giving up")
			}
		}
	})
	return ctx, func() { close(finished); stop() }
}

// giveUp ends the process, also when stderr blocks.
func giveUp(message string) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = os.Stderr.WriteString("tank-snapshotter: " + message + "\n")
	}()
	select {
	case <-written:
	case <-time.After(100 * time.Millisecond):
	}
	os.Exit(exitOther)
}
