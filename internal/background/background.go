// Package background runs work that outlives the call that began it.
//
// It owns nothing on disk.
//
// Its invariant: after Stop every context that came from the group is done, and Wait returns when
// all of the work has ended. A panic in the work is logged and ends that work alone.
//
// The surprising rule: Go may be called after Stop. The work runs, with a context that is done
// already, so that it can put in order what it was given.
package background

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/panics"
)

// Group is the background work of one owner. The zero value is ready for use, and must not be
// copied after that.
type Group struct {
	wg sync.WaitGroup

	mu      sync.Mutex // guards the fields below; nothing else is locked while it is held
	stopped bool
	cancels map[*context.CancelFunc]struct{} // of the contexts that were not released
}

// Go runs fn in a goroutine of its own and logs its error as a warning with the text what. The
// context of fn is done when the group stops. An fn that ends because of that returns
// context.Canceled, which is not logged.
func (g *Group) Go(what string, fn func(context.Context) error) {
	g.wg.Go(func() {
		ctx, release := g.Bind(context.Background())
		defer release()
		err := panics.Call(what, func() error { return fn(ctx) })
		if err != nil && !errors.Is(err, context.Canceled) {
			log.L.WithError(err).Warn(what)
		}
	})
}

// Add makes Wait wait for one call of Done: for work that Go did not begin.
func (g *Group) Add() { g.wg.Add(1) }

// Done ends the work that Add announced.
func (g *Group) Done() { g.wg.Done() }

// Bind returns a context with the values and the deadline of ctx that is done when ctx is done,
// when the group stops, and when release is called, whichever is first. The caller has to call
// release.
func (g *Group) Bind(ctx context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		cancel()
		return ctx, cancel
	}
	if g.cancels == nil {
		g.cancels = map[*context.CancelFunc]struct{}{}
	}
	g.cancels[&cancel] = struct{}{}
	return ctx, func() {
		cancel()
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.cancels, &cancel)
	}
}

// Stop ends the contexts of the group. It does not wait.
func (g *Group) Stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	for cancel := range g.cancels {
		(*cancel)()
	}
	g.cancels = nil
}

// Wait returns when all of the work has ended.
func (g *Group) Wait() { g.wg.Wait() }
