package lockorder

import (
	"strings"
	"testing"
)

// TestRanksHaveNames fails for a rank that an error could not name.
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

// TestOrder takes two locks in each order and in each way. Only a build that checks panics; that locks work, both show.
func TestOrder(t *testing.T) {
	t.Parallel()
	const first = Rank(1)
	for _, row := range []struct {
		name  string
		locks func() (take func(), giveBack func())
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
		{"given back by another goroutine", func() (func(), func()) {
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
			take, giveBack := row.locks()
			text := panicOf(take)
			if text == "" {
				giveBack()
			}
			if !Checked {
				return
			}
			if row.panic == "" && text != "" || !strings.Contains(text, row.panic) {
				t.Errorf("panic %q, expected %q", text, row.panic)
			}
		})
	}
}

func unlockOnPanic(m *Mutex) {
	if p := recover(); p != nil {
		m.Unlock()
		panic(p)
	}
}

func panicOf(fn func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text, _ = p.(string)
		}
	}()
	fn()
	return ""
}
