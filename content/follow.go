package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// ingest is what followers see of an open writer, from its opening or its last truncation on. Growing it never waits
// for a follower.
type ingest struct {
	digest digest.Digest // what the blob is said to be; "" when nobody said

	mu    sync.Mutex
	f     *os.File // the writer's; nil once the ingest ended
	size  int64
	state ingestState
	cause string        // why it is gone
	wait  chan struct{} // closed at the next change; nil while nobody waits
}

type ingestState int

const (
	growing ingestState = iota
	committed
	elsewhere // another writer has brought the blob; this one may still write
	gone
)

// grow tells followers that size bytes are there.
func (in *ingest) grow(size int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.size = size
	in.wake()
}

// end ends the ingest; only the first end counts, with one exception: an ingest whose blob another writer has committed
// may still be truncated or aborted, after which its file no longer has what followers have read.
func (in *ingest) end(state ingestState, cause string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state == growing || in.state == elsewhere && state == gone {
		in.state, in.cause, in.f = state, cause, nil
		in.wake()
	}
}

// wake is called with mu held.
func (in *ingest) wake() {
	if in.wait != nil {
		close(in.wait)
		in.wait = nil
	}
}

// look returns the size and the state, and, while the ingest grows, what is closed at the next change.
func (in *ingest) look() (size int64, state ingestState, changed <-chan struct{}) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.wait == nil {
		in.wait = make(chan struct{})
	}
	return in.size, in.state, in.wait
}

// follow returns a reader of the ingest, nil when it does not grow any more.
func (in *ingest) follow(ctx context.Context, s *Store) (*follower, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state != growing {
		return nil, nil
	}
	// A descriptor of its own stays valid when the file gets its name under blobs/, and when the writer closes.
	fd, err := unix.FcntlInt(in.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ingest of blob %s: %w", in.digest, err)
	}
	f := &follower{s: s, in: in, f: os.NewFile(uintptr(fd), in.f.Name()), stopped: make(chan struct{})}
	f.release = context.AfterFunc(ctx, func() { f.stop(context.Cause(ctx)) })
	return f, nil
}

// Open reads a blob from its beginning without holding it: the recorded blob or, while that is missing, the furthest of
// the ingests that are announced as this blob, as it grows. Read waits for bytes of the ingest. It returns io.EOF after
// this ingest, or another one with the same beginning, was committed as d; and errdefs.ErrUnavailable when the ingest
// was truncated, aborted, committed as something else or closed without a commit, errdefs.ErrNotFound when the blob
// that another writer committed was removed again. Until io.EOF nobody has verified the bytes of an ingest. The end of
// ctx and Close end a Read that waits.
//
// It returns errdefs.ErrNotFound when the blob is neither recorded nor being written.
func (s *Store) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	for range 2 { // the second look is for an ingest that was committed between both parts of the first
		b, err := s.blob(d)
		if err == nil {
			var f *os.File
			if f, err = s.openBlob(b); err == nil {
				return f, nil
			}
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
		if in := s.furthest(d); in != nil {
			f, err := in.follow(ctx, s)
			if err != nil {
				return nil, err
			}
			if f != nil {
				return f, nil
			}
		}
	}
	return nil, fmt.Errorf("blob %s: neither here nor on its way: %w", d, errdefs.ErrNotFound)
}

func (s *Store) furthest(d digest.Digest) (best *ingest) {
	s.mu.Lock()
	ins := slices.Clone(s.ingests[d])
	s.mu.Unlock()
	size := int64(-1)
	for _, in := range ins {
		in.mu.Lock()
		if in.state == growing && in.size > size {
			best, size = in, in.size
		}
		in.mu.Unlock()
	}
	return best
}

// register lets followers find next, in the place of old. Either may be nil.
func (s *Store) register(old, next *ingest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil && old.digest != "" {
		s.ingests[old.digest] = slices.DeleteFunc(s.ingests[old.digest], func(in *ingest) bool { return in == old })
		if len(s.ingests[old.digest]) == 0 {
			delete(s.ingests, old.digest)
		}
	}
	if next != nil && next.digest != "" {
		s.ingests[next.digest] = append(s.ingests[next.digest], next)
	}
}

// follower reads an ingest as it grows. One goroutine reads; any may close.
type follower struct {
	s       *Store
	in      *ingest
	f       *os.File // the ingest's; the blob's once another writer has committed that
	blob    bool     // f is the blob's
	off     int64
	release func() bool // ends the watch over the context

	files  sync.Mutex // held while f is replaced or closed
	closed bool

	once    sync.Once
	stopped chan struct{}
	cause   error // set before stopped is closed
}

func (f *follower) stop(cause error) {
	f.once.Do(func() {
		f.cause = cause
		close(f.stopped)
	})
}

func (f *follower) Close() error {
	f.release()
	f.stop(fs.ErrClosed)
	f.files.Lock()
	defer f.files.Unlock()
	f.closed = true
	return f.f.Close()
}

func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		select {
		case <-f.stopped:
			return 0, f.fault(f.cause.Error(), f.cause)
		default:
		}
		if f.blob {
			n, err := f.f.ReadAt(p, f.off)
			f.off += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		}
		size, state, changed := f.in.look()
		switch {
		case state == elsewhere:
			if err := f.change(); err != nil {
				return 0, err
			}
			continue
		case state == gone:
			return 0, f.fault(f.in.cause, errdefs.ErrUnavailable)
		case f.off < size:
			return f.read(p[:min(int64(len(p)), size-f.off)])
		case state == committed:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-f.stopped:
		}
	}
}

// read reads bytes that were there when it was called. A truncation ends the ingest before it touches the file, so
// that an ingest which has not ended after reading had not been truncated before.
func (f *follower) read(p []byte) (int, error) {
	n, err := f.f.ReadAt(p, f.off)
	if _, state, _ := f.in.look(); state == gone {
		return 0, f.fault(f.in.cause, errdefs.ErrUnavailable)
	}
	if n == 0 {
		if errors.Is(err, fs.ErrClosed) {
			return 0, f.fault("closed", fs.ErrClosed)
		}
		return 0, f.fault(fmt.Sprintf("read at %d: %v", f.off, err), errdefs.ErrUnavailable)
	}
	f.off += int64(n)
	return n, nil
}

// change continues with the blob that another writer has committed. The bytes that were read so far must be the
// beginning of that blob. The state of the ingest is checked after the comparison, because a truncation ends the ingest
// before it changes the file.
func (f *follower) change() error {
	b, err := f.s.blob(f.in.digest)
	var blob *os.File
	if err == nil {
		blob, err = f.s.openBlob(b)
	}
	if errdefs.IsNotFound(err) { // it was removed
		return fmt.Errorf("ingest of blob %s: %w", f.in.digest, err)
	}
	if err != nil {
		return f.fault(err.Error(), errdefs.ErrUnavailable)
	}
	same, err := f.equal(blob)
	if _, state, _ := f.in.look(); err == nil && (!same || state == gone) {
		err = errors.New("the bytes so far are not the beginning of the blob that another writer committed")
	}
	if err != nil {
		blob.Close()
		return f.fault(err.Error(), errdefs.ErrUnavailable)
	}
	f.files.Lock()
	defer f.files.Unlock()
	old := f.f
	f.f, f.blob = blob, true
	if f.closed {
		return errors.Join(f.fault("closed", fs.ErrClosed), blob.Close())
	}
	return old.Close()
}

// equal compares what was read with the beginning of the blob.
func (f *follower) equal(blob *os.File) (bool, error) {
	a, b := make([]byte, piece), make([]byte, piece)
	for at := int64(0); at < f.off; {
		select {
		case <-f.stopped:
			return false, f.cause
		default:
		}
		n := min(f.off-at, piece)
		if _, err := f.f.ReadAt(a[:n], at); err != nil {
			return false, err
		}
		if _, err := blob.ReadAt(b[:n], at); err != nil || !bytes.Equal(a[:n], b[:n]) {
			return false, nil //nolint:nilerr // a blob that ends earlier is another one
		}
		at += n
	}
	return true, nil
}

// arrived notifies the followers of other ingests of a blob that the blob is in the store.
func (s *Store) arrived(d digest.Digest, by *ingest) {
	s.mu.Lock()
	ins := slices.Clone(s.ingests[d])
	s.mu.Unlock()
	for _, in := range ins {
		if in != by {
			in.end(elsewhere, "the blob came from elsewhere")
		}
	}
}

func (f *follower) fault(cause string, class error) error {
	if cause == class.Error() {
		return fmt.Errorf("ingest of blob %s: %w", f.in.digest, class)
	}
	return fmt.Errorf("ingest of blob %s: %s: %w", f.in.digest, cause, class)
}
