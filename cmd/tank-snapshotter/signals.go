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
// which is safe, because Tank may be killed at any time: the next process deletes what an unfinished command leaves. So
// nothing that can't be cancelled keeps a command alive, such as a deletion or a write into a pipe that nobody reads.
const endWithin = 150 * time.Millisecond

// ending is the way in which the process ends after a signal. The zero value is right for every command but serve.
type ending struct {
	inOrder atomic.Bool            // serve ends the process itself
	signal  atomic.Int32           // the first signal; 0: none came
	left    atomic.Pointer[string] // what an interrupted command leaves to its user; nil: nothing
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
			signal.Stop(signals) // the default action of signals is back
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

// code is the exit code of a command that the signal ended; 0 if none came.
func (e *ending) code() int {
	if number := e.signal.Load(); number != 0 {
		return exitSignal + int(number)
	}
	return 0
}

// leaves records what the command leaves to its user if a signal ends it from now on.
func (e *ending) leaves(text string) { e.left.Store(&text) }

// message reports which signal ended the command, and what it leaves.
func (e *ending) message() string {
	text := "ended by signal: " + syscall.Signal(e.signal.Load()).String()
	if left := e.left.Load(); left != nil {
		text += "\n" + *left
	}
	return text
}

// giveUp ends the process, also when stderr blocks.
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
