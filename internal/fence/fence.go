package fence

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/panics"
)

const (
	// DefaultLimit leaves a second of the five within which a client has its answer.
	DefaultLimit = 4 * time.Second
	// defaultKeep is how long the result of work that nobody waits for is kept. A client that was
	// told to try again does so within seconds.
	defaultKeep = 10 * time.Second
	// look is how often the progress of work is compared, as a part of the limit.
	look = 8
)

// Class is a kind of calls with a number of its own of pieces of work in flight. So calls that change
// something and hang do not keep out those that only read.
type Class struct {
	name string
	// slots has an element for each piece of work in flight.
	slots chan struct{}
	// left counts the pieces of work in flight whose call was answered with an error.
	left atomic.Int32
}

// NewClass makes a class with room for most pieces of work in flight. As soon as half of them belong
// to calls that were answered with an error, further calls are refused at once.
func NewClass(name string, most int) *Class {
	return &Class{name: name, slots: make(chan struct{}, most)}
}

// Options of New. nil means the zero value.
type Options struct {
	// Limit is how long a call may take, and work without progress. 0 means DefaultLimit.
	Limit time.Duration
	// Keep is how long the result of work that can be undone is kept for the caller to ask again.
	// 0 means 10 seconds.
	Keep time.Duration
}

// Fence separates the answering of calls from their work.
type Fence struct {
	limit, keep time.Duration
	work        sync.WaitGroup // pieces of work, and removals

	// known is the number of operations in byKey. Do looks for a key only if it is not 0, because
	// the key of a call takes long to make.
	known atomic.Int32

	mu     sync.Mutex // guards the fields below and those of operation that name it
	byKey  map[string]*operation
	kept   int // operations in byKey that have ended
	closed bool
}

// maxKept is the largest number of results that are kept.
const maxKept = 256

// New makes a fence.
func New(opts *Options) *Fence {
	f := &Fence{limit: DefaultLimit, keep: defaultKeep, byKey: map[string]*operation{}}
	if opts != nil && opts.Limit != 0 {
		f.limit = opts.Limit
	}
	if opts != nil && opts.Keep != 0 {
		f.keep = opts.Keep
	}
	return f
}

// Limit is how long a call may take, and work without progress.
func (f *Fence) Limit() time.Duration { return f.limit }

// Call describes a call to Do.
type Call struct {
	// Name is what errors and the log call it. Required.
	Name string
	// Class is required.
	Class *Class
	// Key returns the same text for the same call with the same arguments by the same caller. It is
	// called only while work is in the background. nil: the call is never joined to earlier work.
	Key func() string
	// Subject names what the work makes. The work is no longer undone after Known was called with
	// it. "": the work makes nothing.
	Subject string
	// Undo removes what the work made, after a success that no caller has learned of. nil: nothing
	// has to be removed.
	Undo func(result any) error
	// Progress returns a number that grows while the work makes progress in proportion to bytes.
	// Then it may take longer than the limit. nil: it may not.
	Progress func() uint64
}

// operation is the work of one call.
type operation struct {
	call   Call
	cancel context.CancelFunc
	done   chan struct{} // closed when result and err are set
	result any
	err    error

	// What follows is guarded by Fence.mu.
	key      string      // in Fence.byKey; "" before the call was left
	waiting  int         // calls that wait for the result
	left     bool        // a call was answered before the end
	canceled bool        // its only caller has gone, so its result is not what a repeated call asks for
	ended    bool        // result and err are set
	expiry   *time.Timer // of a result that is kept; nil: it is not kept
}

// Do returns the result of work, or the error of the end of ctx, or errdefs.ErrUnavailable if work
// takes longer than the limit; then work goes on. The context of work has the values of ctx. It ends
// when ctx ends before Do has returned.
func (f *Fence) Do(ctx context.Context, c Call, work func(context.Context) (any, error)) (any, error) {
	limit := newTimer(f.limit, c.Progress)
	defer limit.stop()
	for f.known.Load() > 0 && c.Key != nil {
		op, joined := f.join(c)
		if op == nil {
			break
		}
		limit.follow(op.call.Progress)
		result, err, ended := f.await(ctx, op, limit)
		if !ended || joined {
			return result, err
		}
		// The operation was canceled and has ended by now: the work begins anew.
	}
	op, err := f.begin(ctx, c, limit, work)
	if err != nil {
		return nil, err
	}
	result, err, _ := f.await(ctx, op, limit)
	return result, err
}

// join returns the operation of an earlier call with the same key, nil if there is none. joined is
// false if the operation was canceled: then it has only to be waited for.
func (f *Fence) join(c Call) (op *operation, joined bool) {
	key := c.Key()
	f.mu.Lock()
	defer f.mu.Unlock()
	if op = f.byKey[key]; op == nil {
		return nil, false
	}
	op.waiting++
	return op, !op.canceled
}

// begin begins the work of a call. It waits for a slot as long as the limit allows.
func (f *Fence) begin(ctx context.Context, c Call, limit *timer, work func(context.Context) (any, error)) (
	*operation, error,
) {
	if err := c.Class.enter(ctx, c.Name, limit); err != nil {
		return nil, err
	}
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	op := &operation{call: c, cancel: cancel, done: make(chan struct{}), waiting: 1}
	f.work.Add(1)
	go func() {
		defer f.work.Done()
		defer cancel()
		var result any
		err := panics.Call(c.Name, func() (err error) {
			result, err = work(working)
			return err
		})
		f.finish(op, result, err)
	}()
	return op, nil
}

// enter takes a slot of the class. It returns errdefs.ErrUnavailable if none becomes free within the
// limit, and at once if half of them belong to work that hangs.
func (c *Class) enter(ctx context.Context, name string, limit *timer) error {
	select {
	case c.slots <- struct{}{}:
		if !c.stuck() {
			return nil
		}
		<-c.slots
	default:
	}
	for !c.stuck() {
		select {
		case c.slots <- struct{}{}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.tick():
			if limit.expired() {
				return fmt.Errorf("%s: %d calls are being served: %w", name, cap(c.slots), errdefs.ErrUnavailable)
			}
		}
	}
	return fmt.Errorf("%s: %d calls wait for the disk: %w", name, c.left.Load(), errdefs.ErrUnavailable)
}

func (c *Class) stuck() bool { return int(c.left.Load()) >= max(cap(c.slots)/2, 1) }

// await returns the result of an operation. ended is false if the limit or ctx came first.
func (f *Fence) await(ctx context.Context, op *operation, limit *timer) (result any, err error, ended bool) {
	for {
		select {
		case <-op.done:
			f.learned(op)
			return op.result, op.err, true
		case <-ctx.Done():
			if f.leave(op, true) {
				return nil, context.Cause(ctx), false
			}
		case <-limit.tick():
			if limit.expired() && f.leave(op, false) {
				return nil, fmt.Errorf("%s: no answer within %s, it goes on in the background: %w",
					op.call.Name, f.limit, errdefs.ErrUnavailable), false
			}
		}
	}
}

// learned notes that a call has the result of an operation.
func (f *Fence) learned(op *operation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	op.waiting--
	f.forget(op)
}

// leave notes that a call does not wait any longer, because its caller has gone or because it took
// too long. It reports false if the operation has ended meanwhile.
func (f *Fence) leave(op *operation, gone bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op.ended {
		return false
	}
	op.waiting--
	first := !op.left
	if first {
		op.left = true
		op.call.Class.left.Add(1)
		if op.call.Key != nil {
			if key := op.call.Key(); f.byKey[key] == nil {
				op.key = key
				f.byKey[key] = op
				f.known.Add(1)
			}
		}
	}
	// Only the call that began the work may end it: another one may have been told to ask again.
	if first && gone {
		op.canceled = true
		op.cancel()
	}
	return true
}

// finish sets the result of an operation. If no call waits for it, the result is kept for a while,
// or what the work made is removed.
func (f *Fence) finish(op *operation, result any, err error) {
	made := err == nil && op.call.Undo != nil
	f.mu.Lock()
	if made && op.canceled {
		made = false
		f.mu.Unlock()
		f.undo(op, result) // before a repeated call, which waits, begins anew
		f.mu.Lock()
	}
	op.result, op.err, op.ended = result, err, true
	left := op.left
	if left {
		op.call.Class.left.Add(-1)
	}
	<-op.call.Class.slots
	undo := made && op.waiting == 0 && !f.keepResult(op)
	if op.waiting == 0 && op.expiry == nil {
		f.forget(op)
	}
	close(op.done)
	f.mu.Unlock()
	if undo {
		f.undo(op, result)
	}
	if left {
		log.L.WithField("call", op.call.Name).Infof("a call that was answered before has ended: error %v", err)
	}
}

// keepResult keeps the result of an operation for a repeated call, if it can have one. f.mu is held.
func (f *Fence) keepResult(op *operation) bool {
	if op.key == "" || f.closed || f.kept >= maxKept {
		return false
	}
	f.kept++
	f.work.Add(1)
	op.expiry = time.AfterFunc(f.keep, func() { f.expire(op) })
	return true
}

// forget drops an operation that has ended, and what is kept of it. f.mu is held.
func (f *Fence) forget(op *operation) {
	if op.expiry != nil {
		f.kept--
		if op.expiry.Stop() {
			f.work.Done()
		}
		op.expiry = nil
	}
	if op.key != "" {
		delete(f.byKey, op.key)
		f.known.Add(-1)
		op.key = ""
	}
}

// expire undoes an operation whose result nobody asked for.
func (f *Fence) expire(op *operation) {
	defer f.work.Done()
	f.mu.Lock()
	unasked := op.expiry != nil && op.waiting == 0
	if unasked {
		f.kept--
		op.expiry = nil
		f.forget(op)
	}
	f.mu.Unlock()
	if unasked {
		f.undo(op, op.result)
	}
}

// undo removes what the work of an operation made.
func (f *Fence) undo(op *operation, result any) {
	err := panics.Call(op.call.Name, func() error { return op.call.Undo(result) })
	entry := log.L.WithField("call", op.call.Name)
	if err != nil {
		entry.WithError(err).Warn("nobody asked for what the call made, and it could not be removed")
		return
	}
	entry.Info("nobody asked for what the call made: it was removed")
}

// Known notes that the caller knows what an earlier call made, so that it is not removed. It costs
// nothing while no results are kept.
func (f *Fence) Known(subject func() string) {
	if f.known.Load() == 0 {
		return
	}
	s := subject()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, op := range f.byKey {
		if op.expiry != nil && op.call.Subject == s {
			f.forget(op)
		}
	}
}

// Close ends the contexts of the work in the background, removes what calls made whose results are
// kept, and returns when all work has ended. No call may begin afterwards.
func (f *Fence) Close() {
	f.mu.Lock()
	f.closed = true
	var kept []*operation
	for _, op := range f.byKey {
		switch {
		case !op.ended:
			op.canceled = true
			op.cancel()
		case op.expiry != nil && op.expiry.Stop():
			kept = append(kept, op)
		}
	}
	f.mu.Unlock()
	for _, op := range kept {
		f.expire(op)
	}
	f.work.Wait()
}
