package lockorder

import (
	"strings"
	"testing"
)

// TestRanksHaveNames fails for a rank without a name, because a panic could not name it.
func TestRanksHaveNames(t *testing.T) {
	t.Parallel()
	for r := Rank(1); int(r) < len(rankNames); r++ {
		if r.String() == "" {
			t.Errorf("rank %d has no name", r)
		}
	}
	if got := Rank(200).String(); got != "rank 200" {
		t.Errorf("an unknown rank is %q", got)
	}
}

// TestOrder takes locks in each order and in each way. Every build shows that the locks work; only a build with checks
// panics.
func TestOrder(t *testing.T) {
	t.Parallel()
	const first = Rank(1)
	for _, row := range []struct {
		name  string
		locks func() (take func(), release func())
		panic string
	}{
		{"one lock", func() (func(), func()) {
			m := &Mutex{Rank: first}
			return m.Lock, m.Unlock
		}, ""},
		{"one lock for reading", func() (func(), func()) {
			m := &RWMutex{Rank: first}
			return m.RLock, m.RUnlock
		}, ""},
		{"one lock for writing", func() (func(), func()) {
			m := &RWMutex{Rank: first}
			return m.Lock, m.Unlock
		}, ""},
		{"a lock of the same rank", func() (func(), func()) {
			a, b := &Mutex{Rank: first}, &Mutex{Rank: first}
			return func() { a.Lock(); defer unlockOnPanic(a); b.Lock() }, func() { b.Unlock(); a.Unlock() }
		}, "takes " + Rank(1).String() + " while holding " + Rank(1).String()},
		{"released by another goroutine", func() (func(), func()) {
			m := &Mutex{Rank: first}
			return func() {
				m.Lock()
				done := make(chan struct{})
				go func() { m.Unlock(); close(done) }()
				<-done
				m.Lock()
			}, m.Unlock
		}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			take, release := row.locks()
			text := panicOf(take)
			if text == "" {
				release()
			}
			if !Checked {
				return
			}
			if row.panic == "" && text != "" || !strings.Contains(text, row.panic) {
				t.Errorf("panic %q, want %q", text, row.panic)
			}
		})
	}
}

// unlockOnPanic is deferred. It unlocks m if the goroutine panics, and panics again.
func unlockOnPanic(m *Mutex) {
	if p := recover(); p != nil {
		m.Unlock()
		panic(p)
	}
}

// panicOf returns the text that fn panics with; "" if it does not panic.
func panicOf(fn func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text, _ = p.(string)
		}
	}()
	fn()
	return ""
}
