// Package descriptors shares the file descriptors of the process among pieces of work.
//
// It owns nothing on disk.
//
// Its invariant: the descriptors of all shares fit into the limit of the process (RLIMIT_NOFILE), together
// with those that were open before and a reserve for short work. Each kind of work leaves the smallest share
// that other kinds need, and the first piece of a kind waits only for work that runs, so none waits for ever.
// If nothing runs, one share is given whatever the limit is, so that work that can't succeed fails instead of
// hanging.
//
// The surprising rule: the limit is read again for each share, because it may be changed while the process
// runs. If it is high, as in Tank's unit, nothing is counted.
package descriptors

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is a kind of work that takes descriptors. Work that has a share must not wait for another one.
type Kind int

// The kinds of work.
const (
	// Download is a blob that is fetched or written.
	Download Kind = iota
	// Extraction is a layer that is unpacked. It may wait for a download that holds its share.
	Extraction
	// Assembly is a tree that is copied or moved into another.
	Assembly
	kinds
)

const (
	// plenty is the limit above which nothing is counted.
	plenty = 4096
	// scarce is the limit below which all work gets only the least share of its kind.
	scarce = 1024
	// reserve is for work that asks for no share: connections, short reads of files, and the process's own files.
	reserve = 12
	// smallest is the smallest share with which any kind of work may succeed.
	smallest = 8
	// poll is the interval in which waiters check whether the limit was changed.
	poll = 100 * time.Millisecond
)

// Share is a number of descriptors that a piece of work may have open. 0: no limit.
type Share int

// Pool shares out descriptors.
type Pool struct {
	limit func() uint64
	open  func(limit uint64) int

	mu    sync.Mutex // guards the fields below
	held  [kinds][]Share
	base  int       // descriptors that were open while there was no share
	waits []*waiter // in order of arrival
}

// waiter is a piece of work that waits for a share.
type waiter struct {
	kind  Kind
	given chan struct{} // closed when share is set
	share Share
}

// Process shares out the descriptors of this process.
var Process = &Pool{limit: Limit, open: countOpen}

// Limit returns the number of descriptors that the process may have.
func Limit() uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return plenty
	}
	return r.Cur
}

// Scarce reports whether the process may have so few descriptors that work should not open several just to be faster.
func Scarce() bool { return Limit() < scarce }

// countOpen counts the descriptors below the limit that are open. It needs neither /proc nor a descriptor.
func countOpen(limit uint64) (n int) {
	fds := make([]unix.PollFd, min(limit, plenty))
	for i := range fds {
		fds[i].Fd = int32(i)
	}
	_, _ = unix.Poll(fds, 0)
	for i := range fds {
		if fds[i].Revents&unix.POLLNVAL == 0 {
			n++
		}
	}
	return n
}

// least returns the smallest share with which a kind of work succeeds.
func least(k Kind) Share { return [kinds]Share{Download: 4, Extraction: 16, Assembly: 20}[k] }

// shareOf returns the share of a piece of work under a limit.
func shareOf(k Kind, limit uint64) Share {
	switch {
	case limit >= plenty:
		return 0
	case limit >= scarce && k != Download:
		return 64
	}
	return least(k)
}

// Take waits for a share for a piece of work. It returns the share and a function that returns it to the pool. The
// error is the cause of the end of ctx.
func (p *Pool) Take(ctx context.Context, k Kind) (s Share, release func(), err error) {
	w := &waiter{kind: k, given: make(chan struct{})}
	p.mu.Lock()
	p.waits = append(p.waits, w)
	p.give()
	p.mu.Unlock()
	for {
		// Only work that waits needs a timer.
		select {
		case <-w.given:
			return w.share, sync.OnceFunc(func() { p.release(k, w.share) }), nil
		default:
		}
		select {
		case <-w.given:
		case <-time.After(poll):
			p.mu.Lock()
			p.give()
			p.mu.Unlock()
		case <-ctx.Done():
			if !p.abandon(w) {
				p.release(k, w.share)
			}
			return 0, nil, fmt.Errorf("waiting for file descriptors: %w", context.Cause(ctx))
		}
	}
}

// abandon removes a waiter from the queue. It returns false if the waiter got its share meanwhile.
func (p *Pool) abandon(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.waits, w)
	if i < 0 {
		return false
	}
	p.waits = slices.Delete(p.waits, i, i+1)
	return true
}

func (p *Pool) release(k Kind, s Share) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.held[k], s)
	p.held[k] = slices.Delete(p.held[k], i, i+1)
	p.give()
}

// give gives shares to waiters in order of arrival. The caller holds mu.
func (p *Pool) give() {
	if len(p.waits) == 0 {
		return
	}
	limit := p.limit()
	if limit < plenty && p.idle() {
		p.base = p.open(limit)
	}
	blocked, full := false, [kinds]bool{}
	p.waits = slices.DeleteFunc(p.waits, func(w *waiter) bool {
		share := shareOf(w.kind, limit)
		if p.idle() && limit < plenty {
			share = max(smallest, min(share, Share(limit)-Share(p.base)-smallest/2))
		}
		if blocked || full[w.kind] || !p.fits(w.kind, share, limit) {
			// The first waiter of its kind waits until there is room for it; later waiters must not take that room.
			blocked = blocked || len(p.held[w.kind]) == 0
			full[w.kind] = true
			return false
		}
		p.held[w.kind] = append(p.held[w.kind], share)
		w.share = share
		close(w.given)
		return true
	})
}

func (p *Pool) idle() bool {
	for k := range kinds {
		if len(p.held[k]) > 0 {
			return false
		}
	}
	return true
}

// fits reports whether a share of a kind is left and, unless it is the first of its kind, the smallest share
// of each other kind as well. The caller holds mu.
func (p *Pool) fits(k Kind, share Share, limit uint64) bool {
	if limit >= plenty || p.idle() {
		return true
	}
	sum := Share(p.base) + reserve + share
	for other := range kinds {
		for _, s := range p.held[other] {
			sum += s
		}
		if other != k && len(p.held[k]) > 0 && len(p.held[other]) == 0 {
			sum += least(other)
		}
	}
	return uint64(sum) <= limit
}
