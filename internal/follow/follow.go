// Package follow reads blobs while they are still being written.
//
// It owns nothing on disk: the files belong to the content store and its writers.
//
// Its invariant: every byte that a Reader returns is at the same offset of the file that it follows,
// and it returns io.EOF only after these bytes were committed as the blob.
//
// The surprising rule: a writer never waits for readers. It announces its progress and goes on; a
// Reader has a descriptor of its own, which stays valid when the file is renamed, deleted or
// closed.
package follow

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// State is the state of an ingest. The zero value is Growing.
type State int

const (
	// Growing is the state of an ingest whose writer is open.
	Growing State = iota
	// Committed means that the bytes of the ingest are the blob.
	Committed
	// Superseded means that another writer has committed the blob. The writer of this ingest may
	// still write.
	Superseded
	// Ended means that the bytes of the ingest will not become the blob, or no longer begin with what
	// readers have read.
	Ended
)

// File is the open data file of a writer.
type File interface {
	Fd() uintptr
	Name() string
}

// Ingest is what readers see of an open writer since it was opened or last truncated.
type Ingest struct {
	digest digest.Digest // of the blob that it is announced as; "" if it was not announced

	mu    sync.Mutex // guards the fields below
	f     File       // nil once the ingest is no longer Growing
	size  int64
	state State
	cause string        // why the state is Ended
	wait  chan struct{} // closed at the next change; nil while no reader waits
}

// NewIngest returns an ingest that has size bytes in f. d is the digest of the blob that it is
// announced as, or "".
func NewIngest(d digest.Digest, f File, size int64) *Ingest {
	return &Ingest{digest: d, f: f, size: size}
}

// Digest returns the digest of the blob that the ingest is announced as, or "".
func (in *Ingest) Digest() digest.Digest { return in.digest }

// Grow announces that the file has size bytes.
func (in *Ingest) Grow(size int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.size = size
	in.wake()
}

// End moves the ingest out of the state Growing. cause is the reason if state is Ended. Only the
// first call counts, with one exception: a Superseded ingest can still be Ended by a truncation or
// an abort, after which its file no longer has what readers have read.
func (in *Ingest) End(state State, cause string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state == Growing || in.state == Superseded && state == Ended {
		in.state, in.cause, in.f = state, cause, nil
		in.wake()
	}
}

// wake wakes the readers that wait. Called with mu held.
func (in *Ingest) wake() {
	if in.wait != nil {
		close(in.wait)
		in.wait = nil
	}
}

// look returns the size, the state and a channel that is closed at the next change.
func (in *Ingest) look() (size int64, state State, changed <-chan struct{}) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.wait == nil {
		in.wait = make(chan struct{})
	}
	return in.size, in.state, in.wait
}

// follow returns a reader of the ingest, or nil if it is no longer Growing.
func (in *Ingest) follow(ctx context.Context, t *Table) (*Reader, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state != Growing {
		return nil, nil
	}
	fd, err := unix.FcntlInt(in.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ingest of blob %s: %w: %w", in.digest, err, errdefs.ErrInternal)
	}
	r := &Reader{table: t, in: in, f: os.NewFile(uintptr(fd), in.f.Name()), stopped: make(chan struct{})}
	r.release = context.AfterFunc(ctx, func() { r.stop(context.Cause(ctx)) })
	return r, nil
}

// Table finds the ingests of a blob.
type Table struct {
	open func(digest.Digest) (*os.File, error)

	mu      sync.Mutex // guards ingests
	ingests map[digest.Digest][]*Ingest
}

// NewTable returns an empty table. open opens a committed blob; its error is of class
// errdefs.ErrNotFound when the blob is not in the store.
func NewTable(open func(digest.Digest) (*os.File, error)) *Table {
	return &Table{open: open, ingests: map[digest.Digest][]*Ingest{}}
}

// Replace adds next and removes old. Either may be nil. Ingests without a digest are not in the
// table.
func (t *Table) Replace(old, next *Ingest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old != nil && old.digest != "" {
		t.ingests[old.digest] = slices.DeleteFunc(t.ingests[old.digest], func(in *Ingest) bool { return in == old })
		if len(t.ingests[old.digest]) == 0 {
			delete(t.ingests, old.digest)
		}
	}
	if next != nil && next.digest != "" {
		t.ingests[next.digest] = append(t.ingests[next.digest], next)
	}
}

// Len returns how many blobs have ingests.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.ingests)
}

// Committed is called after the ingest by was committed as the blob d. It moves the other ingests of
// the blob to the state Superseded.
func (t *Table) Committed(d digest.Digest, by *Ingest) {
	for _, in := range t.of(d) {
		if in != by {
			in.End(Superseded, "")
		}
	}
}

// Follow reads the largest ingest of a blob from its beginning. It returns nil if the blob has no
// ingest that grows.
func (t *Table) Follow(ctx context.Context, d digest.Digest) (*Reader, error) {
	var largest *Ingest
	size := int64(-1)
	for _, in := range t.of(d) {
		in.mu.Lock()
		if in.state == Growing && in.size > size {
			largest, size = in, in.size
		}
		in.mu.Unlock()
	}
	if largest == nil {
		return nil, nil
	}
	return largest.follow(ctx, t)
}

func (t *Table) of(d digest.Digest) []*Ingest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.ingests[d])
}
