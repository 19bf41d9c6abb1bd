package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// writeback is how many bytes are written between two requests to the kernel to start writing them out, so that the fsync
// at the end finds little to do.
const writeback = 8 << 20

// writer writes one ingest. It lets the local store lock the ref, resume, write and hash, and commits by itself: the local
// store's Commit would adopt bytes without a record and know nothing of holders.
type writer struct {
	v       *View
	ref     string
	stored  string
	total   int64 // announced bytes; 0 when unknown
	aborted atomic.Bool
	current atomic.Pointer[ingest]

	mu      sync.Mutex
	local   content.Writer
	f       *os.File // the data file, for reading
	offset  int64
	flushed int64 // bytes of which writing out was started
	dirty   bool  // an fsync is due
	broken  error // of a write; Truncate heals it
	digest  digest.Digest
	done    bool
}

var _ content.Syncer = (*writer)(nil)

// Writer opens or resumes the holder's ingest of that ref. It returns errdefs.ErrAlreadyExists, and holds the blob, when the
// descriptor's digest is that of a blob that is here, errdefs.ErrUnavailable while another writer has the ref, and
// errdefs.ErrInvalidArgument without a ref or with a malformed digest.
//
// The Write that reaches the descriptor's size, when there is one, fsyncs before it returns, so that Commit is quick.
func (v *View) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if o.Ref == "" {
		return nil, fmt.Errorf("ingest: no ref: %w", errdefs.ErrInvalidArgument)
	}
	if o.Desc.Digest != "" {
		_, err := v.hit(o.Desc.Digest)
		if err == nil {
			return nil, fmt.Errorf("blob %s: %w", o.Desc.Digest, errdefs.ErrAlreadyExists)
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	w, err := v.openWriter(ctx, o.Ref, o.Desc)
	if err != nil {
		return nil, fmt.Errorf("ingest %.200q: %w", o.Ref, err)
	}
	if d := w.in().digest; d != "" && v.s.opts.OnIngest != nil {
		v.s.opts.OnIngest(d)
	}
	return w, nil
}

func (v *View) openWriter(ctx context.Context, ref string, desc ocispec.Descriptor) (_ *writer, err error) {
	w := &writer{v: v, ref: ref, stored: v.stored(ref), total: max(desc.Size, 0)}
	d := desc.Digest
	if d == "" {
		d = digestOf(ref)
	}
	w.current.Store(&ingest{digest: d})
	if err := v.s.lock(w); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close(gone, "not opened")
		}
	}()
	if err := v.s.prepare(w.stored, w.total); err != nil {
		return nil, err
	}
	ls, err := v.s.local()
	if err != nil {
		return nil, err
	}
	// The digest is withheld: with it the local store would answer AlreadyExists for bytes without a record.
	w.local, err = ls.Writer(ctx, content.WithRef(w.stored), content.WithDescriptor(ocispec.Descriptor{Size: w.total}))
	if err != nil {
		return nil, err
	}
	st, err := w.local.Status()
	if err != nil {
		return nil, err
	}
	if w.f, err = openFile(w.data()); err != nil {
		return nil, err
	}
	fi, err := w.f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() != st.Offset {
		return nil, fmt.Errorf("data changed while it was read: %w", errdefs.ErrUnavailable)
	}
	v.s.mu.Lock() // Status may be asked about w already
	w.total = max(w.total, st.Total)
	v.s.mu.Unlock()
	w.offset, w.flushed, w.dirty = st.Offset, st.Offset, true
	w.follow(d)
	if w.aborted.Load() {
		return nil, errdefs.ErrAborted
	}
	return w, nil
}

// lock takes the ref for w.
func (s *Store) lock(w *writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("store is closed: %w", errdefs.ErrFailedPrecondition)
	}
	if s.writers[w.stored] != nil {
		return fmt.Errorf("ref is locked by another writer: %w", errdefs.ErrUnavailable)
	}
	s.writers[w.stored] = w
	return nil
}

// prepare takes away what the local store could not resume but would write into: parts that a crash left, what was announced
// with another size, what is not made of regular files.
func (s *Store) prepare(stored string, total int64) error {
	dir := s.ingestDir(stored)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	st, err := readIngest(dir)
	if err == nil && st.Ref == stored && (total == 0 || st.Total == 0 || total == st.Total) {
		return nil
	}
	return s.discard(dir)
}

// in returns what followers of w see.
func (w *writer) in() *ingest { return w.current.Load() }

func (w *writer) data() string { return filepath.Join(w.v.s.ingestDir(w.stored), "data") }

// follow shows w to followers, from its beginning, in the place of what they saw before.
func (w *writer) follow(d digest.Digest) {
	next := &ingest{digest: d, f: w.f, size: w.offset}
	old := w.current.Swap(next)
	w.v.s.register(old, next)
	old.end(gone, "truncated")
	if w.aborted.Load() {
		next.end(gone, "aborted") // Abort may have seen only the old one
	}
}

func (w *writer) Status() (content.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st, err := w.local.Status()
	st.Ref, st.Offset, st.Total, st.Expected = w.ref, w.offset, w.total, w.in().digest
	return st, err
}

// Digest returns the digest of what was written so far, by SHA-256; after a commit the blob's.
func (w *writer) Digest() digest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.digest != "" {
		return w.digest
	}
	return w.local.Digest()
}

// usable says why w can't be written or committed. Called with mu held.
func (w *writer) usable() error {
	switch {
	case w.done:
		return fmt.Errorf("ingest %.200q: writer is closed: %w", w.ref, errdefs.ErrFailedPrecondition)
	case w.aborted.Load():
		return fmt.Errorf("ingest %.200q: %w", w.ref, errdefs.ErrAborted)
	}
	return nil
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.usable(), w.broken); err != nil {
		return 0, err
	}
	n, err := w.local.Write(p)
	w.offset += int64(n)
	w.dirty = true
	w.in().grow(w.offset)
	if err != nil {
		w.broken = fmt.Errorf("ingest %.200q: write at %d: %w", w.ref, w.offset, classify(err))
		return n, w.broken
	}
	if w.total > 0 && w.offset >= w.total {
		return n, w.sync()
	}
	if due := w.offset - w.flushed; due >= writeback {
		// An error here is one that the fsync will meet as well.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.flushed, due, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.offset
	}
	return n, nil
}

// Sync forces what was written to disk.
func (w *writer) Sync() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	return w.sync()
}

// sync is called with mu held. After an fsync that failed nobody knows what of the file is on disk, and the next one would
// not say it, so the ingest is forgotten.
func (w *writer) sync() error {
	if !w.dirty {
		return nil
	}
	if err := w.v.s.hooks.syncFile(w.f); err != nil {
		err = fmt.Errorf("ingest %.200q: fsync: %w", w.ref, classify(err))
		return errors.Join(err, w.v.s.abort(w.stored))
	}
	w.dirty, w.flushed = false, w.offset
	return nil
}

// Truncate begins anew. size other than 0 is errdefs.ErrInvalidArgument.
func (w *writer) Truncate(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if size != 0 {
		return fmt.Errorf("ingest %.200q: can't be cut to %d bytes, only to none: %w", w.ref, size, errdefs.ErrInvalidArgument)
	}
	if w.offset > 0 {
		w.offset = 0
		w.follow(w.in().digest)
	}
	w.flushed, w.dirty = 0, true
	w.broken = nil
	if err := w.local.Truncate(0); err != nil {
		w.broken = fmt.Errorf("ingest %.200q: %w", w.ref, classify(err))
	}
	return w.broken
}

// Close ends the writer. What was not committed stays and can be resumed by a writer of the same ref.
func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil
	}
	return w.close(gone, "closed without a commit")
}

// close gives up the ref. Called with mu held, or before anybody else knows w.
func (w *writer) close(state ingestState, cause string) error {
	w.done = true
	s := w.v.s
	w.in().end(state, cause)
	s.register(w.in(), nil)
	var err error
	if w.f != nil {
		w.f.Close()
	}
	if w.local != nil {
		err = w.local.Close()
	}
	s.mu.Lock()
	delete(s.writers, w.stored)
	s.mu.Unlock()
	return err
}

// classify gives an error of the filesystem its class.
func classify(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
}
