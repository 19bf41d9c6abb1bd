//go:build lockorder

package lockorder

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// Checked reports whether this build checks the order.
const Checked = true

// Mutex is a sync.Mutex with a place in the order.
type Mutex struct {
	Rank Rank // required
	mu   sync.Mutex
}

// Lock takes the lock. It panics if the goroutine holds one that comes later in the order, or this one.
func (m *Mutex) Lock() {
	before(m, m.Rank)
	m.mu.Lock()
}

// Unlock gives the lock back.
func (m *Mutex) Unlock() {
	m.mu.Unlock()
	after(m)
}

// RWMutex is a sync.RWMutex with a place in the order.
type RWMutex struct {
	Rank Rank // required
	mu   sync.RWMutex
}

// Lock takes the lock for writing. It panics like Mutex.Lock.
func (m *RWMutex) Lock() {
	before(m, m.Rank)
	m.mu.Lock()
}

// Unlock gives back the lock that was taken for writing.
func (m *RWMutex) Unlock() {
	m.mu.Unlock()
	after(m)
}

// RLock takes the lock for reading. It panics like Mutex.Lock: a goroutine that already reads would wait for a writer
// that waits for this goroutine.
func (m *RWMutex) RLock() {
	before(m, m.Rank)
	m.mu.RLock()
}

// RUnlock gives back the lock that was taken for reading.
func (m *RWMutex) RUnlock() {
	m.mu.RUnlock()
	after(m)
}

// lock is a lock that a goroutine holds, or waits for.
type lock struct {
	lock any
	rank Rank
}

var (
	mu   sync.Mutex // guards held
	held = map[uint64][]lock{}
)

// before panics if the goroutine holds a lock that does not come before this one, and else notes that it takes it.
func before(l any, r Rank) {
	if r == 0 || int(r) >= len(rankNames) {
		panic("lockorder: a lock without a rank")
	}
	id := goroutine()
	mu.Lock()
	defer mu.Unlock()
	for _, h := range held[id] {
		if h.rank >= r {
			panic(fmt.Sprintf("lockorder: takes %s while holding %s", r, h.rank))
		}
	}
	held[id] = append(held[id], lock{l, r})
}

// after notes that a lock was given back, by whichever goroutine.
func after(l any) {
	id := goroutine()
	mu.Lock()
	defer mu.Unlock()
	if forget(id, l) {
		return
	}
	for other := range held {
		if forget(other, l) {
			return
		}
	}
}

func forget(id uint64, l any) bool {
	i := slices.IndexFunc(held[id], func(h lock) bool { return h.lock == l })
	if i < 0 {
		return false
	}
	if held[id] = slices.Delete(held[id], i, i+1); len(held[id]) == 0 {
		delete(held, id)
	}
	return true
}

// goroutine returns the number of the calling goroutine, which the runtime shows only in a stack trace.
func goroutine() uint64 {
	var b [64]byte
	fields := bytes.Fields(b[:runtime.Stack(b[:], false)])
	id, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		panic(err)
	}
	return id
}
