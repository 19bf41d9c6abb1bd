package content

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// spare is what an ingest of unknown length leaves free, for the database and for the ingests whose length is known.
const spare = 64 << 20

// room holds downloads against the free space: a download begins only if all of it fits beside what others have
// announced and not written yet.
type room struct {
	promised atomic.Int64 // bytes that open writers have announced and not written

	free func(dir *os.File) (bytes int64, err error) // tests have small disks
}

// freeSpace returns how many bytes the file system of f has for this process. A file system that does not report its
// size has enough.
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

// promise takes note of bytes that are to come, if they fit. It returns errdefs.ErrResourceExhausted, and takes no
// note, if they do not.
func (r *room) promise(f *os.File, bytes int64) error {
	others := r.promised.Add(bytes) - bytes
	free, err := r.free(f)
	if err == nil && bytes > free-others {
		err = noRoom(bytes, free, others)
	}
	if err != nil {
		r.promised.Add(-bytes)
	}
	return err
}

func noRoom(bytes, free, others int64) error {
	const text = "disk: %d bytes are to come, and of the %d that are free %d are others': %w"
	return fmt.Errorf(text, bytes, max(free, 0), max(min(others, free), 0), errdefs.ErrResourceExhausted)
}

// left returns errdefs.ErrResourceExhausted unless there is more free than others were promised.
func (r *room) left(f *os.File) error {
	free, err := r.free(f)
	if others := r.promised.Load(); err == nil && free-others < spare {
		err = noRoom(spare, free, others)
	}
	return err
}

// Room returns errdefs.ErrResourceExhausted unless the disk has room for what the view lacks of these blobs: those
// that are not here, less what earlier downloads of the same holder left of them. With again, all of them are to be
// downloaded once more. A shortage is reported to Options.OnShortage first, so that what nobody needs makes room.
func (v *View) Room(ctx context.Context, blobs []ocispec.Descriptor, again bool) error {
	lack, err := v.lack(ctx, blobs, again)
	if err != nil || lack == 0 {
		return err
	}
	return v.s.makeRoom(ctx, func() error {
		for _, pool := range []string{"ingest", "blobs"} { // they may lie on different disks
			if err := v.s.roomIn(pool, lack); err != nil {
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
	if err := s.room.promise(dir, bytes); err != nil {
		return err
	}
	s.room.promised.Add(-bytes)
	return nil
}

// lack is how many bytes of these blobs are to be downloaded.
func (v *View) lack(ctx context.Context, blobs []ocispec.Descriptor, again bool) (int64, error) {
	here := map[digest.Digest]int64{} // bytes that need not be downloaded
	if !again {
		ingests, err := v.ListStatuses(ctx)
		if err != nil {
			return 0, err
		}
		for _, st := range ingests {
			here[digestOf(st.Ref)] = st.Offset
		}
	}
	lack := int64(0)
	for _, b := range blobs {
		if _, ok := v.s.Size(b.Digest); ok && !again {
			continue
		}
		due := max(b.Size-here[b.Digest], 0)
		if due > math.MaxInt64-lack {
			return 0, fmt.Errorf("content: blobs of more than %d bytes: %w", int64(math.MaxInt64), errdefs.ErrResourceExhausted)
		}
		lack += due
		here[b.Digest] = b.Size // it may be listed again
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

// promise holds what w is going to write against the free space. It is called before anybody else knows w.
func (w *writer) promise(ctx context.Context, f *os.File) error {
	due := max(w.total-w.offset, 0)
	err := w.v.s.makeRoom(ctx, func() error { return w.v.s.room.promise(f, due) })
	if err == nil {
		w.due = due
	}
	return err
}

// wrote takes n bytes off the promise. Called with mu held.
func (w *writer) wrote(n int64) {
	n = min(n, w.due)
	w.due -= n
	w.v.s.room.promised.Add(-n)
}

// giveUp deletes the ingest of a writer that can't go on: what it has written must not fill a disk that is full
// already. Called with mu held.
func (w *writer) giveUp(cause error) error {
	w.broken = cause
	w.wrote(w.due)
	if err := w.v.s.abort(w.stored); err != nil {
		return fmt.Errorf("%w (and its bytes stay: %v)", cause, err)
	}
	return cause
}
