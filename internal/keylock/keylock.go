// Package keylock has a lock for each key, so that work on one key excludes other work on that key
// and on no other.
//
// It owns nothing on disk.
//
// Its invariant: a key takes memory only while somebody holds or awaits its lock, so keys may come
// from outside.
//
// The surprising rule: the locks are not reentrant, and a goroutine that needs two keys has to take
// them in an order that all goroutines share. Package lockorder says where keyed locks come.
package keylock

import (
	"context"
	"sync"
)

// Locks are the locks of one set of keys. The zero value has none locked. A Locks must not be copied
// after its first use.
type Locks struct {
	mu    sync.Mutex // guards locks and the users of each; nothing else is locked while it is held
	locks map[string]*lock
}

// lock is the lock of one key.
type lock struct {
	held  chan struct{} // full while the lock is held
	users int           // goroutines that hold or await the lock
}

// Lock waits for the lock of key and returns the function that unlocks it.
func (l *Locks) Lock(key string) (unlock func()) {
	k := l.enter(key)
	k.held <- struct{}{}
	return func() { l.unlock(key, k) }
}

// LockContext is like Lock, but waits no longer than ctx, whose error it returns.
func (l *Locks) LockContext(ctx context.Context, key string) (unlock func(), err error) {
	k := l.enter(key)
	select {
	case k.held <- struct{}{}:
		return func() { l.unlock(key, k) }, nil
	case <-ctx.Done():
		l.leave(key, k)
		return nil, ctx.Err()
	}
}

func (l *Locks) enter(key string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.locks[key]
	if k == nil {
		if l.locks == nil {
			l.locks = map[string]*lock{}
		}
		k = &lock{held: make(chan struct{}, 1)}
		l.locks[key] = k
	}
	k.users++
	return k
}

func (l *Locks) unlock(key string, k *lock) {
	<-k.held
	l.leave(key, k)
}

func (l *Locks) leave(key string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.locks, key)
	}
}
