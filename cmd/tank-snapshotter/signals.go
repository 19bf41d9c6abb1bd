package main

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// endWithin is how long a command may take to end in order after the first signal. Then the process ends at
// once, so that an operation that can't be cancelled, such as a deletion or a write to a full pipe, does not
// keep it alive. This is safe, because Tank may be killed at any time: the next process deletes the
// leftovers.
const endWithin = 150 * time.Millisecond

// ending controls how the process ends after a signal. The zero value is for every command but serve.
type ending struct {
	inOrder atomic.Bool            // the command ends the process itself, without the limit endWithin
	signal  atomic.Int32           // the number of the first signal; 0 before it
	left    atomic.Pointer[string] // a sentence about what an interrupted command leaves behind; nil: nothing
}

// context returns a context that ends with the first SIGINT or SIGTERM. A second signal ends the process at once.
func (e *ending) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	finished := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			number, _ := s.(syscall.Signal)
			e.signal.Store(int32(number))
			signal.Stop(signals) // restores the default action, so a second signal ends the process
			cancel()
		case <-finished:
			return
		}
		select {
		case <-finished:
		case <-time.After(endWithin):
			if !e.inOrder.Load() {
				giveUp(e.message(), e.code())
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(finished)
		cancel()
	}
}

// code returns the exit code of a command that a signal ended, 0 without a signal.
func (e *ending) code() int {
	if number := e.signal.Load(); number != 0 {
		return exitSignal + int(number)
	}
	return 0
}

// leaves sets the sentence about what the command leaves behind if a signal ends it from now on.
func (e *ending) leaves(text string) { e.left.Store(&text) }

// message returns the text about the signal and about what the command leaves behind.
func (e *ending) message() string {
	text := "ended by signal: " + syscall.Signal(e.signal.Load()).String()
	if left := e.left.Load(); left != nil {
		text += "\n" + *left
	}
	return text
}

// giveUp writes a message to stderr and ends the process, even if stderr blocks.
func giveUp(message string, code int) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = os.Stderr.WriteString("tank-snapshotter: " + message + "\n")
	}()
	select {
	case <-written:
	case <-time.After(50 * time.Millisecond):
	}
	os.Exit(code)
}
