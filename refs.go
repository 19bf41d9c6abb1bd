package tank

import (
	"context"
	"sync"
)

// refLocks has one pull of a reference run at a time: the second finds what the first brought, or takes over.
type refLocks struct {
	mu    sync.Mutex // guards refs
	refs  map[string]chan struct{}
	users map[string]int
}

// lock waits for its turn; unlock gives it on. An error is ctx's.
func (l *refLocks) lock(ctx context.Context, ref string) (unlock func(), err error) {
	l.mu.Lock()
	if l.refs == nil {
		l.refs, l.users = map[string]chan struct{}{}, map[string]int{}
	}
	c := l.refs[ref]
	if c == nil {
		c = make(chan struct{}, 1)
		l.refs[ref] = c
	}
	l.users[ref]++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.users[ref]--; l.users[ref] == 0 {
			delete(l.refs, ref)
			delete(l.users, ref)
		}
	}
	select {
	case c <- struct{}{}:
		return func() { <-c; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
