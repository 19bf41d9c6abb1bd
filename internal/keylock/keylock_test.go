package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// TestLock: one goroutine at a time has a key. Other keys are free meanwhile, and no key is kept in
// the map afterwards.
func TestLock(t *testing.T) {
	var l Locks
	var wg sync.WaitGroup
	count := 0
	defer l.Lock("other")()
	for range 8 {
		wg.Go(func() {
			for range 200 {
				unlock := l.Lock("key")
				count++ // the race detector reports a lock that does not exclude
				unlock()
			}
		})
	}
	wg.Wait()
	if count != 8*200 {
		t.Errorf("counted to %d", count)
	}
	if len(l.locks) != 1 {
		t.Errorf("%d keys are kept, want the one that is locked", len(l.locks))
	}
}

// TestLockContext: a wait ends with its context, and then keeps neither the lock nor the key.
func TestLockContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		unlock, err := l.LockContext(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := l.LockContext(ctx, "key")
			ended <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("wait that was canceled: %v", err)
		}
		unlock()
		l.Lock("key")()
		if len(l.locks) != 0 {
			t.Errorf("%d keys are kept", len(l.locks))
		}
	})
}
