package content

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/follow"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/lockorder"
)

// writeback is the number of bytes between two requests to the kernel to start writing to the disk,
// so that the fsync at the end has little to do.
const writeback = 8 << 20

// piece is the number of bytes that are written at once, and then hashed while they are still in the
// cache of the core.
const piece = 256 << 10

// digestWait is how long Digest waits for the hash of the bytes that an earlier writer left.
const digestWait = 200 * time.Millisecond

// writer writes one ingest. Bytes that an earlier writer left are hashed in the background. Methods
// that need this hash wait for it without holding mu, so that Status, Truncate and Close never
// wait.
type writer struct {
	hs      *HolderStore
	ref     string
	stored  string // ref together with the holder
	total   int64  // announced bytes; 0 if unknown
	aborted atomic.Bool
	current atomic.Pointer[follow.Ingest] // what readers follow; never nil
	sum     atomic.Pointer[sum]           // nil until the data file is open; once ready, mu guards its hash

	mu      lockorder.Mutex // guards the fields below
	f       fsys.File       // the data file
	offset  int64
	started time.Time
	updated time.Time
	flushed int64              // bytes that the kernel was asked to write to the disk
	due     *diskspace.Promise // of space for the bytes that are announced and not written
	dirty   bool               // there are bytes that were not synced
	foreign bool               // the first bytes are of another process: a power cut may have damaged them
	broken  error              // the error of a failed write; Truncate clears it
	digest  digest.Digest      // of the committed blob; "" before Commit
	done    bool               // closed, or Commit was called
}

var _ content.Syncer = (*writer)(nil)

// Writer makes the ingest of the holder with a ref, or resumes it. It returns
// errdefs.ErrAlreadyExists, and holds the blob, if the blob of the descriptor is in the store;
// errdefs.ErrUnavailable while another writer has the ref; errdefs.ErrInvalidArgument if the ref is
// missing or the digest is malformed; and errdefs.ErrResourceExhausted, after deleting the ingest,
// if the disk has too little space for the size in the descriptor.
//
// If the disk has too little space for a Write, Write deletes the ingest. Bytes that were not
// announced must leave at least 64 MiB free.
//
// The Write that reaches the size in the descriptor syncs before it returns, so that Commit is
// quick. Bytes that an earlier writer left are hashed in the background: Write, Sync and Commit
// wait for that, Status does not.
func (hs *HolderStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if o.Ref == "" {
		return nil, fmt.Errorf("ingest: the ref is missing: %w", errdefs.ErrInvalidArgument)
	}
	if o.Desc.Digest != "" {
		_, err := hs.hit(ctx, o.Desc.Digest)
		if errdefs.IsNotFound(err) {
			err = hs.adopt(ctx, o.Desc)
		}
		if err == nil {
			return nil, fmt.Errorf("blob %s: %w", o.Desc.Digest, errdefs.ErrAlreadyExists)
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	w, err := hs.openWriter(ctx, o.Ref, o.Desc)
	if err != nil {
		return nil, fmt.Errorf("ingest %.200q: %w", o.Ref, err)
	}
	if d := w.ingest().Digest(); d != "" && hs.s.opts.OnIngest != nil {
		hs.s.opts.OnIngest(d)
	}
	return w, nil
}

func (hs *HolderStore) openWriter(ctx context.Context, ref string, desc ocispec.Descriptor) (_ *writer, err error) {
	w := &writer{
		hs: hs, ref: ref, stored: hs.stored(ref), total: max(desc.Size, 0),
		mu: lockorder.Mutex{Rank: lockorder.Writer},
	}
	d := desc.Digest
	if d == "" {
		d = digestOf(ref)
	}
	w.current.Store(follow.NewIngest(d, nil, 0))
	if err := hs.s.lock(w); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close(follow.Ended, "not opened")
		}
	}()
	f, st, err := hs.s.openData(w.stored, w.total)
	if w.aborted.Load() {
		err = errdefs.ErrAborted
		_ = hs.s.dir.Trash(hs.s.ingestDir(w.stored)) // Abort may have run before the directory was made
	} else if err != nil {
		err = errclass.Ensure(err)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	hs.s.mu.Lock() // Status may be reading w
	w.total = max(w.total, st.Total)
	hs.s.mu.Unlock()
	w.f, w.started, w.updated = f, st.StartedAt, st.UpdatedAt
	w.offset, w.flushed, w.dirty = st.Offset, st.Offset, true
	w.foreign = st.Offset > 0 && st.StartedAt.Before(hs.s.opened)
	if err := w.promise(ctx); err != nil {
		return nil, w.giveUp(err)
	}
	w.sum.Store(hs.s.sum(ctx, f, st.Offset))
	w.follow(d)
	if w.aborted.Load() {
		return nil, errdefs.ErrAborted
	}
	return w, nil
}

// lock reserves the ref for w.
func (s *Store) lock(w *writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("the store is closed: %w", errdefs.ErrFailedPrecondition)
	}
	if s.writers[w.stored] != nil {
		return fmt.Errorf("ref is locked by another writer: %w", errdefs.ErrUnavailable)
	}
	s.writers[w.stored] = w
	return nil
}

// ingest returns the ingest that readers follow.
func (w *writer) ingest() *follow.Ingest { return w.current.Load() }

func (w *writer) data() string { return filepath.Join(w.hs.s.ingestDir(w.stored), "data") }

// follow makes w visible to readers, from its beginning, in place of what they followed before.
func (w *writer) follow(d digest.Digest) {
	next := follow.NewIngest(d, w.f, w.offset)
	old := w.current.Swap(next)
	w.hs.s.ingests.Replace(old, next)
	old.End(follow.Ended, "truncated")
	if w.aborted.Load() {
		next.End(follow.Ended, "aborted") // Abort may have ended only the old ingest
	}
}

func (w *writer) Status() (content.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return content.Status{
		Ref: w.ref, Offset: w.offset, Total: w.total, Expected: w.ingest().Digest(),
		StartedAt: w.started, UpdatedAt: w.updated,
	}, nil
}

// Digest returns the SHA-256 digest of the bytes written so far, and after Commit that of the blob.
// If bytes of an earlier writer are still being hashed, it waits at most 200 ms and then returns
// "".
func (w *writer) Digest() digest.Digest {
	w.sum.Load().wait(digestWait)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.digest != "" {
		return w.digest
	}
	return w.sum.Load().digest()
}

// lockSummed waits until the bytes that an earlier writer left are hashed, w is closed or aborted,
// or ended is closed. It returns with mu held. If the hash failed, broken is set.
func (w *writer) lockSummed(ended <-chan struct{}) {
	for {
		w.mu.Lock()
		m := w.sum.Load()
		select {
		case <-m.ready:
			if m.err != nil && w.broken == nil {
				w.broken = fmt.Errorf("ingest %.200q: hash: %w", w.ref, errclass.Ensure(m.err))
			}
			return
		case <-m.stopped: // by Close or Abort
			return
		case <-ended:
			return
		default:
		}
		w.mu.Unlock()
		select {
		case <-m.ready:
		case <-m.stopped:
		case <-ended:
		}
	}
}

// usable returns an error if w is closed or aborted. Called with mu held.
func (w *writer) usable() error {
	switch {
	case w.done:
		return fmt.Errorf("ingest %.200q: writer is closed: %w", w.ref, errdefs.ErrFailedPrecondition)
	case w.aborted.Load() && w.broken != nil:
		return w.broken
	case w.aborted.Load():
		return fmt.Errorf("ingest %.200q: %w", w.ref, errdefs.ErrAborted)
	}
	return nil
}

func (w *writer) Write(p []byte) (int, error) {
	w.lockSummed(nil)
	defer w.mu.Unlock()
	if err := cmp.Or(w.usable(), w.broken); err != nil {
		return 0, err
	}
	n, err := w.writePieces(p)
	w.updated, w.dirty = time.Now(), true
	w.ingest().Grow(w.offset)
	if err != nil {
		err = fmt.Errorf("ingest %.200q: write at %d: %w", w.ref, w.offset, errclass.Ensure(err))
		if errdefs.IsResourceExhausted(err) {
			return n, w.giveUp(err)
		}
		w.broken = err
		return n, err
	}
	if w.offset > w.total && (w.total > 0 || w.offset-w.flushed >= writeback) { // more bytes than announced
		if err := w.hs.s.space.Fits(w.f, spare); err != nil {
			return n, w.giveUp(fmt.Errorf("ingest %.200q: %w", w.ref, err))
		}
	}
	if w.total > 0 && w.offset >= w.total {
		return n, w.sync()
	}
	if due := w.offset - w.flushed; due >= writeback {
		// The fsync will report the same error.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.flushed, due, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.offset
	}
	return n, nil
}

// writePieces writes p piece by piece, and hashes each piece while it is still in the cache.
func (w *writer) writePieces(p []byte) (written int, err error) {
	for len(p) > 0 && err == nil {
		var n int
		n, err = w.f.WriteAt(p[:min(len(p), piece)], w.offset)
		w.sum.Load().hash.Write(p[:n])
		w.offset += int64(n)
		w.due.Wrote(int64(n))
		written, p = written+n, p[n:]
	}
	return written, err
}

// Sync waits until the written bytes are on the disk and hashed, so that Commit is quick.
func (w *writer) Sync() error {
	w.lockSummed(nil)
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	return w.sync()
}

// sync forces the written bytes to the disk. It deletes the ingest after a failed fsync, because
// some of the bytes may be lost and the next fsync would not report the loss. Called with mu held.
func (w *writer) sync() error {
	if !w.dirty {
		return nil
	}
	if err := w.f.Sync(); err != nil {
		err = fmt.Errorf("ingest %.200q: fsync: %w", w.ref, errclass.Ensure(err))
		return errors.Join(err, errclass.Ensure(w.hs.s.abort(w.stored)))
	}
	w.dirty, w.flushed = false, w.offset
	return nil
}

// Truncate deletes the written bytes. It returns errdefs.ErrInvalidArgument if size is not 0.
func (w *writer) Truncate(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if size != 0 {
		return fmt.Errorf("ingest %.200q: cannot be truncated to %d bytes, only to 0: %w",
			w.ref, size, errdefs.ErrInvalidArgument)
	}
	if w.offset > 0 {
		w.due.Reset(max(w.total, 0))
		w.offset = 0
		w.follow(w.ingest().Digest())
	}
	w.flushed, w.updated, w.dirty, w.foreign = 0, time.Now(), true, false
	w.broken = nil
	old := w.sum.Swap(w.hs.s.sum(context.Background(), w.f, 0))
	old.stop()
	if err := w.f.Truncate(0); err != nil {
		w.broken = fmt.Errorf("ingest %.200q: %w", w.ref, errclass.Ensure(err))
	}
	return w.broken
}

// Close ends the writer. An ingest that was not committed can be resumed by another writer with the
// same ref.
func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil
	}
	return w.close(follow.Ended, "closed without a commit")
}

// CloseInterrupts marks a writer whose Close may be called while another goroutine is in Write or
// Commit: a call that waits for the hash of earlier bytes then returns an error.
func (w *writer) CloseInterrupts() {}

// close releases the ref. Called with mu held, or before other goroutines can see w.
func (w *writer) close(state follow.State, cause string) error {
	w.done = true
	w.due.End()
	s := w.hs.s
	w.ingest().End(state, cause)
	s.ingests.Replace(w.ingest(), nil)
	var err error
	if m := w.sum.Load(); m != nil {
		m.stop()
	}
	if w.f != nil {
		if state == follow.Ended && !w.aborted.Load() {
			// Set the file's time to that of the last write, because the kernel's clock for files is
			// only accurate to some milliseconds. A failure does not matter.
			ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(w.updated.UnixNano())}
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, w.data(), ts, unix.AT_SYMLINK_NOFOLLOW)
		}
		err = w.f.Close()
	}
	s.mu.Lock()
	delete(s.writers, w.stored)
	s.mu.Unlock()
	return err
}
