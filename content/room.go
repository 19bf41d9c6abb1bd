package content

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// spare is what an ingest of unknown length leaves free, for the database and for the ingests whose length is known.
const spare = 64 << 20

// A promise to a download that brings less than slowRate over slowWindow does not count: a registry that announces as
// much as is free, and then trickles, must not keep others from the disk.
const (
	slowRate   = 256 << 10 // bytes per second
	slowWindow = 5 * time.Second
)

// room holds downloads against the free space: a download begins only if all of it fits beside what others have
// announced but not written yet.
type room struct {
	free func(dir *os.File) (bytes int64, err error) // freeSpace; tests replace it

	taking sync.Mutex // held from reading the free space until the promise is recorded

	mu       sync.Mutex // guards promises and what is in them
	promises map[*promise]struct{}
}

// promise is the number of bytes that one writer has announced but not written.
type promise struct {
	due   int64
	since time.Time // when the window began
	bytes int64     // written in it
	slow  bool      // the window before it was
}

func newRoom() *room { return &room{free: freeSpace, promises: map[*promise]struct{}{}} }

// promised returns how many bytes downloads that are not slow have announced but not written.
func (r *room) promised(now time.Time) (bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.promises {
		if p.turn(now, 0); !p.slow {
			bytes += p.due
		}
	}
	return bytes
}

// turn counts n written bytes and, when the window is over, begins the next one. Called with the mutex of room held.
func (p *promise) turn(now time.Time, n int64) {
	p.bytes += n
	if took := now.Sub(p.since); took >= slowWindow {
		p.slow = float64(p.bytes) < slowRate*took.Seconds()
		p.since, p.bytes = now, 0
	}
}

// fits returns errdefs.ErrResourceExhausted unless these bytes fit beside what others were promised.
func (r *room) fits(f *os.File, bytes int64) error {
	free, err := r.free(f)
	if others := r.promised(time.Now()); err == nil && bytes > free-others {
		const text = "disk: %d bytes are to come, and of the %d that are free %d are others': %w"
		err := fmt.Errorf(text, bytes, max(free, 0), max(min(others, free), 0), errdefs.ErrResourceExhausted)
		return cause.Mark(err, cause.DiskFull, "")
	}
	return err
}

// take promises bytes, if they fit.
func (r *room) take(f *os.File, bytes int64) (*promise, error) {
	r.taking.Lock()
	defer r.taking.Unlock()
	p := &promise{due: bytes, since: time.Now()}
	if err := r.fits(f, bytes); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promises[p] = struct{}{}
	return p, nil
}

// wrote subtracts n bytes from a promise, which may be nil.
func (r *room) wrote(p *promise, n int64) {
	if p == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.turn(time.Now(), n)
	p.due = max(p.due-n, 0)
}

// again sets a promise to that many bytes.
func (r *room) again(p *promise, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.due = bytes
}

// end ends a promise.
func (r *room) end(p *promise) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.promises, p)
}

// freeSpace returns how many bytes this process may write to the file system of f. A file system that does not report
// its size counts as having enough.
func freeSpace(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	if st.Blocks == 0 || st.Bavail > math.MaxInt64/uint64(max(st.Bsize, 1)) {
		return math.MaxInt64, nil
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Room returns errdefs.ErrResourceExhausted unless the disk has room for what the view lacks of these blobs: those
// that are not in the store, less what earlier downloads of the same holder left of them. With again, all of them are
// downloaded once more. In a shortage, Options.OnShortage is called first to free space.
func (hs *HolderStore) Room(ctx context.Context, blobs []ocispec.Descriptor, again bool) error {
	lack, err := hs.lack(ctx, blobs, again)
	if err != nil || lack == 0 {
		return err
	}
	return hs.s.makeRoom(ctx, func() error {
		for _, pool := range []string{"ingest", "blobs"} { // they may lie on different disks
			if err := hs.s.roomIn(pool, lack); err != nil {
				return fmt.Errorf("content: %w", err)
			}
		}
		return nil
	})
}

// roomIn returns errdefs.ErrResourceExhausted unless the file system of a directory of the root has room. Nothing is
// promised: each writer promises its own part.
func (s *Store) roomIn(pool string, bytes int64) error {
	dir, err := os.Open(filepath.Join(s.root, pool))
	if err != nil {
		return err
	}
	defer dir.Close()
	return s.room.fits(dir, bytes)
}

// lack returns how many bytes of these blobs must be downloaded.
func (hs *HolderStore) lack(ctx context.Context, blobs []ocispec.Descriptor, again bool) (int64, error) {
	here := map[digest.Digest]int64{} // bytes that need not be downloaded
	if !again {
		ingests, err := hs.ListStatuses(ctx)
		if err != nil {
			return 0, err
		}
		for _, st := range ingests {
			here[digestOf(st.Ref)] = st.Offset
		}
	}
	lack := int64(0)
	for _, b := range blobs {
		if _, ok := hs.s.Size(b.Digest); ok && !again {
			continue
		}
		due := max(b.Size-here[b.Digest], 0)
		if due > math.MaxInt64-lack {
			err := fmt.Errorf("content: blobs of more than %d bytes: %w", int64(math.MaxInt64), errdefs.ErrResourceExhausted)
			return 0, cause.Mark(err, cause.DiskFull, "")
		}
		lack += due
		here[b.Digest] = b.Size // count it once if it is listed twice
	}
	return lack, nil
}

// makeRoom calls fn, and once more after room was made if the first call found none.
func (s *Store) makeRoom(ctx context.Context, fn func() error) error {
	err := fn()
	if errdefs.IsResourceExhausted(err) && s.opts.OnShortage != nil && s.opts.OnShortage(ctx) {
		err = fn()
	}
	return err
}

// promise compares the bytes that w announces with the free space. It is called before w is visible to others.
func (w *writer) promise(ctx context.Context, f *os.File) error {
	return w.hs.s.makeRoom(ctx, func() (err error) {
		w.due, err = w.hs.s.room.take(f, max(w.total-w.offset, 0))
		return err
	})
}

// giveUp deletes the ingest of a writer that can't continue, so that its bytes do not stay on a full disk. Called with
// mu held.
func (w *writer) giveUp(cause error) error {
	w.broken = cause
	w.hs.s.room.end(w.due)
	if err := w.hs.s.abort(w.stored); err != nil {
		return fmt.Errorf("%w (and its bytes stay: %v)", cause, err)
	}
	return cause
}
