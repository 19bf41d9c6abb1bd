// Package descriptors shares out the file descriptors of the process.
//
// It owns nothing on disk.
//
// Its invariant: what the holders of shares may open together fits into the process's limit (RLIMIT_NOFILE),
// beside what was open before and a reserve for short work. Each kind of work leaves the least that the
// others need, and the first of a kind waits only for what runs, so none waits for ever. If nothing runs at
// all, one share is given whatever the limit is: work that cannot be done fails, and does not hang.
//
// The surprising rule: the limit is read again for every share, since it may be changed while the process runs. Where
// it is high, as in Tank's unit, nothing is counted at all.
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
	// plenty is the limit from which on nothing is counted.
	plenty = 4096
	// few is the limit below which all work gets only the least share of its kind.
	few = 1024
	// reserve is for work that asks for no share: connections, short reads of files, and the process's own files.
	reserve = 12
	// smallest is the smallest share with which any kind of work may succeed.
	smallest = 8
	// again is how soon a waiter notices that the limit was changed.
	again = 100 * time.Millisecond
)

// Share is how many descriptors work may have open. 0: no limit.
type Share int

// Pool shares out descriptors.
type Pool struct {
	limit func() uint64
	open  func(limit uint64) int

	mu    sync.Mutex // guards what follows
	held  [kinds][]Share
	base  int       // descriptors that were open when nobody held a share
	waits []*waiter // in order of arrival
}

// waiter is work that waits for a share.
type waiter struct {
	kind  Kind
	given chan struct{} // closed when share is set
	share Share
}

// Process shares out the descriptors of this process.
var Process = &Pool{limit: Limit, open: countOpen}

// Limit returns how many descriptors the process may have.
func Limit() uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return plenty
	}
	return r.Cur
}

// Few reports whether the process has so few descriptors that work should not open several for the sake of speed.
func Few() bool { return Limit() < few }

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

// least is the smallest share of a kind of work.
func least(k Kind) Share { return [kinds]Share{Download: 4, Extraction: 16, Assembly: 20}[k] }

// shareOf is the share that work of a kind gets under a limit.
func shareOf(k Kind, limit uint64) Share {
	switch {
	case limit >= plenty:
		return 0
	case limit >= few && k != Download:
		return 64
	}
	return least(k)
}

// Take waits for a share for work of a kind. It returns the share and a function that gives it back; its error is the
// cause of the end of ctx.
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
		case <-time.After(again):
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

// abandon takes a waiter out of the queue. It reports false if the waiter was given its share meanwhile.
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

// give gives shares to waiters in order of arrival. Called with mu held.
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

// fits reports whether there is room for a share of a kind, and, unless it is the first of its kind, for the
// least that any other kind needs. Called with mu held.
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
