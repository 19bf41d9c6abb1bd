// Package diskspace compares what is going to be written with the free space of a file system.
//
// It owns nothing on disk.
//
// Its invariant: all bytes that a Ledger has promised fit together into the space that was free when
// it made the latest promise, except those of slow downloads.
//
// The surprising rule: free space is what an ordinary user may write, even if the process runs as
// root, so that the blocks that a file system reserves stay free. A file system that does not report
// its size counts as having enough.
package diskspace

import (
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/rate"
)

// Space is the size of a file system, in bytes. Both fields are math.MaxInt64 if the file system does
// not report it.
type Space struct {
	Free  int64 // what a process without privileges may still write
	Total int64
}

// File is an open file or directory, for example an *os.File.
type File interface {
	Fd() uintptr
	Name() string
}

// Of returns the space of the file system of a path.
func Of(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return space(&st), nil
}

// OfFile returns the space of the file system of an open file.
func OfFile(f File) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return space(&st), nil
}

func space(st *unix.Statfs_t) Space {
	block := uint64(max(st.Bsize, 1))
	if st.Blocks == 0 || max(st.Blocks, st.Bavail) > math.MaxInt64/block {
		return Space{math.MaxInt64, math.MaxInt64}
	}
	return Space{int64(st.Bavail * block), int64(st.Blocks * block)}
}

// Ledger compares what downloads have announced with the free space: a download begins only if all of
// it fits beside what the others have announced and not written yet. The zero value is ready to
// use. Its methods and those of its promises may be called by several goroutines at once.
type Ledger struct {
	Space func(File) (Space, error) // nil: OfFile
	Now   func() time.Time          // nil: time.Now

	promising sync.Mutex // held from reading the free space until the promise is recorded

	mu       sync.Mutex // guards promises and the fields of each Promise
	promises map[*Promise]struct{}
}

// Promise is the number of bytes that one download has announced and not written. The promise of a
// slow download (package rate) does not count: a registry that announces as many bytes as are free,
// and then sends slowly, must not keep others from the disk. The methods of a nil Promise do nothing.
type Promise struct {
	ledger *Ledger
	due    int64 // announced and not written
	bytes  int64 // written so far
	meter  rate.Meter
}

func (l *Ledger) now() time.Time {
	if l.Now != nil {
		return l.Now()
	}
	return time.Now()
}

// promised returns how many bytes downloads that are not slow have announced and not written.
func (l *Ledger) promised() (bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for p := range l.promises {
		if !p.meter.IsSlow(now, p.bytes) {
			bytes += p.due
		}
	}
	return bytes
}

// Fits returns errdefs.ErrResourceExhausted unless that many bytes fit into the file system of f
// beside what is promised.
func (l *Ledger) Fits(f File, bytes int64) error {
	spaceOf := l.Space
	if spaceOf == nil {
		spaceOf = OfFile
	}
	space, err := spaceOf(f)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
	if others := l.promised(); bytes > space.Free-others {
		free := max(space.Free, 0)
		err := fmt.Errorf("disk: %d bytes are needed, %d are free, and %d of these are promised to other downloads: %w",
			bytes, free, max(min(others, free), 0), errdefs.ErrResourceExhausted)
		return cause.Mark(err, cause.DiskFull, "")
	}
	return nil
}

// Promise promises bytes of the file system of f to a download, under the condition of Fits. End
// ends the promise.
func (l *Ledger) Promise(f File, bytes int64) (*Promise, error) {
	l.promising.Lock()
	defer l.promising.Unlock()
	p := &Promise{ledger: l, due: bytes, meter: rate.NewMeter(l.now(), rate.Window, 0)}
	if err := l.Fits(f, bytes); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.promises == nil {
		l.promises = map[*Promise]struct{}{}
	}
	l.promises[p] = struct{}{}
	return p, nil
}

// Promises returns how many promises have not ended.
func (l *Ledger) Promises() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.promises)
}

// Wrote subtracts n bytes that were written.
func (p *Promise) Wrote(n int64) {
	if p == nil {
		return
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	p.bytes += n
	p.meter.IsSlow(p.ledger.now(), p.bytes) // a write can end a window of the meter, too
	p.due = max(p.due-n, 0)
}

// Reset makes p a promise of that many bytes, whatever was written before.
func (p *Promise) Reset(bytes int64) {
	if p == nil {
		return
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	p.due = bytes
}

// End ends the promise.
func (p *Promise) End() {
	if p == nil {
		return
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	delete(p.ledger.promises, p)
}
