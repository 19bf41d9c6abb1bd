package resolver

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Flights keeps the fetches into one store from downloading the same blob at the same time: the second waits for the first, and then finds the
// blob in the store, or goes on where the first gave up. Share one among the resolvers of a process that write to the same store. The zero
// value is not usable.
type Flights struct {
	mu    sync.Mutex
	turns map[digest.Digest]*turn
}

type turn struct {
	taken chan struct{} // full while somebody downloads
	users int           // who has it or waits for it
}

// NewFlights makes an empty registry of downloads.
func NewFlights() *Flights { return &Flights{turns: map[digest.Digest]*turn{}} }

// take waits until nobody else downloads d. The caller calls done when it does not any more.
func (f *Flights) take(ctx context.Context, d digest.Digest) (done func(), err error) {
	f.mu.Lock()
	t := f.turns[d]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		f.turns[d] = t
	}
	t.users++
	f.mu.Unlock()
	leave := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(f.turns, d)
		}
	}
	select {
	case t.taken <- struct{}{}:
		return func() {
			<-t.taken
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
