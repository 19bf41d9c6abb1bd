// Package content stores blobs by digest, and the ingests that become blobs.
//
// It owns two directories of the root. blobs/<algorithm>/<hex> are verified blobs: read-only files
// of mode 0444 in directories of mode 0700. ingest/<hash of a ref>/{data,state} are unfinished
// downloads, which can be resumed. What is to be deleted is first renamed to ingest/.trash-*; names
// that begin with a dot are garbage whenever a root is opened. The two directories may be on
// different file systems: then a commit copies the blob, and a deletion does not rename it.
//
// Its invariants (docs/on-disk.md): bytes come before their record, and a record is removed before
// its bytes (I1); a blob is visible only after its digest was verified (I2). File and directory are
// synced before the record. Only Sweep deletes the bytes of a blob, and only bytes without a record
// (I5).
//
// The surprising rule: a hit through a HolderStore is a hold. Info, ReaderAt, Update and every call
// that returns AlreadyExists first record that the holder keeps the blob, because containerd adopts
// a blob with one Info and never calls again. Store's own Size, Open and ReaderAt hold nothing.
package content

import (
	"cmp"
	"context"
	_ "crypto/sha256" // algorithms that digest.Digest.Validate accepts
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Options of Open.
type Options struct {
	// OnIngest is called without any lock after a writer was opened for a blob whose digest is
	// known, from the descriptor or from the end of the ref, as in `<ns>/<seq>/layer-sha256:<hex>`
	// of containerd. nil: it is not called.
	OnIngest func(digest.Digest)
	// OnGarbage is called without any lock after a Delete released the last hold of a blob, so that
	// a Sweep would free its bytes. nil: it is not called.
	OnGarbage func(d digest.Digest)
	// LiveHolder reports whether to keep an unfinished ingest of holder; Sweep removes the others.
	// It is called without any lock, and never for metadata.Containerd, which aborts its own
	// ingests. nil: all ingests are kept.
	LiveHolder func(holder metadata.Holder) bool
	// OnShortage is called without any lock when the disk has too little space for a download. It
	// frees space and reports whether it may have freed some; then the download is tried once more.
	// nil: the download fails.
	OnShortage func(ctx context.Context) bool
	// Needed returns blobs that Sweep keeps although they have no record; after an error Sweep
	// keeps all. It is called without any lock, and only if there are blobs without a record. nil:
	// Sweep keeps none.
	Needed func() (map[digest.Digest]bool, error)
	// Observe sees every Sweep, and a Hit when a holder comes to hold a blob that was in the store
	// already. nil: nobody observes.
	Observe observe.Observer
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
	// ReadOnly forbids every change of the root. false: Open makes directories and deletes
	// leftovers.
	ReadOnly bool
}

// Stats counts blobs and ingests. Bytes is the sum of their sizes.
type Stats struct {
	Blobs, Ingests int
	Bytes          int64
}

// Store holds the blobs and ingests of one root. Its methods may be called by several goroutines at
// once.
type Store struct {
	root  string
	db    *metadata.DB
	opts  Options
	fs    fsys.FS
	dir   *rootdir.Dir // names, deletions and the gate of blobs/ and ingest/
	space diskspace.Ledger
	// opened is when Open was called: an ingest that began before was begun by another process.
	opened time.Time
	// ingests are the open writers of blobs whose digest is known.
	ingests *follow.Table
	// rehash slows down, in tests, the hashing of bytes that an earlier writer left. It is nil
	// otherwise.
	rehash func(io.Reader) io.Reader
	wg     sync.WaitGroup // calls of Delete whose transaction is not durable yet

	// mu guards the fields below. While it is held, no ingest is moved away: a writer may be
	// opening it.
	mu      lockorder.Mutex
	closed  bool
	writers map[string]*writer // open writers by stored ref
}

// Open opens blobs/ and ingest/ below root, an existing directory, and makes them if they are
// missing. db is the open database of the root and stays the caller's to close. nil opts means the
// defaults. It returns errdefs.ErrFailedPrecondition if one of the two names is not a directory.
func Open(root string, db *metadata.DB, opts *Options) (*Store, error) {
	s := &Store{
		mu:      lockorder.Mutex{Rank: lockorder.Ingests},
		root:    root,
		db:      db,
		opened:  time.Now(),
		writers: map[string]*writer{},
	}
	s.ingests = follow.NewTable(s.openRecorded)
	if opts != nil {
		s.opts = *opts
	}
	s.fs = cmp.Or(s.opts.FS, fsys.OS)
	if !s.opts.ReadOnly {
		for _, dir := range []string{"blobs", "blobs/sha256", "ingest"} {
			if err := s.makeDir(filepath.Join(root, dir)); err != nil {
				return nil, errclass.Ensure(fmt.Errorf("content: %w", err))
			}
		}
	}
	var err error
	s.dir, err = rootdir.Open(root, db, &rootdir.Options{
		Pools: []string{rootdir.Blobs, rootdir.Ingest}, TrashPool: rootdir.Ingest, FS: s.fs, ReadOnly: s.opts.ReadOnly,
	})
	if err != nil {
		return nil, errclass.Ensure(fmt.Errorf("content: %w", err))
	}
	if s.opts.ReadOnly {
		return s, nil
	}
	left, err := s.dir.Leftovers(context.Background(), rootdir.Ingest)
	s.dir.Delete(left...)
	if err != nil {
		s.dir.Close()
		return nil, errclass.Ensure(fmt.Errorf("content: ingest: %w", err))
	}
	return s, nil
}

// makeDir makes a directory and syncs its parent, unless it exists.
func (s *Store) makeDir(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := s.fs.Mkdir(path, 0o700); err != nil {
			return err
		}
		return s.fs.SyncDir(filepath.Dir(path))
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%s: not a directory: %w", path, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Close waits for background work. It does not close writers and readers. After it no writer can be
// opened.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	s.dir.Wait()
	s.dir.Close()
	return nil
}

// For returns the store as the holder h sees it.
func (s *Store) For(h metadata.Holder) *HolderStore { return &HolderStore{s: s, holder: h} }

// Path returns the path at which a blob is stored, or would be. d must be valid.
func (s *Store) Path(d digest.Digest) string {
	return filepath.Join(s.root, "blobs", d.Algorithm().String(), d.Encoded())
}

// Size returns the size of a recorded blob in bytes, and whether its file exists and has that size.
// It holds nothing.
func (s *Store) Size(d digest.Digest) (int64, bool) {
	b, err := s.blob(d)
	return b.Size, err == nil
}

// ReaderAt reads a recorded blob without holding it. It uses only the digest of desc. It returns
// errdefs.ErrNotFound if the blob is not recorded, or if its file is missing or has another size.
func (s *Store) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	b, err := s.blob(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := s.openBlob(b)
	if err != nil {
		return nil, err
	}
	return &readerAt{f, b.Size}, nil
}

// Open reads a blob from its beginning without holding it. If the blob is not recorded yet, it
// follows the largest ingest that is announced as this blob: Read returns its bytes as they are
// written, and waits for more. These bytes are not verified before io.EOF.
//
// Open returns errdefs.ErrNotFound if the blob is neither recorded nor being written. Read returns
// io.EOF after this ingest, or another one that begins with the same bytes, was committed as d;
// errdefs.ErrUnavailable if the ingest was truncated, aborted, committed as another blob or closed
// without a commit; and errdefs.ErrNotFound if another writer committed the blob and it was removed
// since. Close, and the end of ctx, end a Read that waits.
func (s *Store) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	for range 2 { // an ingest may be committed after the first openRecorded
		f, err := s.openRecorded(d)
		if err == nil {
			return f, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
		r, err := s.ingests.Follow(ctx, d)
		if err != nil {
			return nil, err
		}
		if r != nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("blob %s: neither in the store nor being written: %w", d, errdefs.ErrNotFound)
}

// openRecorded opens the file of a recorded blob. Its errors are those of ReaderAt.
func (s *Store) openRecorded(d digest.Digest) (*os.File, error) {
	b, err := s.blob(d)
	if err != nil {
		return nil, err
	}
	return s.openBlob(b)
}

type readerAt struct {
	*os.File
	size int64
}

func (r *readerAt) Size() int64 { return r.size }

// blob returns the record of a blob whose file exists. It returns errdefs.ErrNotFound if there is
// none, and errdefs.ErrInvalidArgument if d is not a digest.
func (s *Store) blob(d digest.Digest) (b metadata.Blob, err error) {
	if err := validate(d); err != nil {
		return b, err
	}
	err = s.db.ViewPending(func(tx *metadata.Tx) (err error) {
		b, err = tx.Blob(d)
		return err
	})
	if err != nil {
		return metadata.Blob{}, err
	}
	return b, s.present(b)
}

// present returns errdefs.ErrNotFound unless the file of the blob exists and has the type and size
// that the record requires.
func (s *Store) present(b metadata.Blob) error {
	fi, err := os.Lstat(s.Path(b.Digest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("blob %s: file is missing: %w", b.Digest, errdefs.ErrNotFound)
	case err != nil:
		return errclass.Ensure(fmt.Errorf("blob %s: %w", b.Digest, err))
	}
	return plausible(b, fi)
}

func plausible(b metadata.Blob, fi fs.FileInfo) error {
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("blob %s: not a regular file: %w", b.Digest, errdefs.ErrNotFound)
	}
	if fi.Size() != b.Size {
		return fmt.Errorf("blob %s: %d bytes instead of %d: %w", b.Digest, fi.Size(), b.Size, errdefs.ErrNotFound)
	}
	return nil
}

// openBlob opens the file of a recorded blob. Its errors are those of present.
func (s *Store) openBlob(b metadata.Blob) (*os.File, error) {
	f, err := openFile(s.Path(b.Digest))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("blob %s: %w: %w", b.Digest, err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, errclass.Ensure(fmt.Errorf("blob %s: %w", b.Digest, err))
	}
	fi, err := f.Stat()
	if err == nil {
		err = plausible(b, fi)
	}
	if err != nil {
		f.Close()
		return nil, errclass.Ensure(err)
	}
	return f, nil
}

func openFile(path string) (*os.File, error) { return os.OpenFile(path, readFlags, 0) }

// readFlags open a file for reading. They do not follow a symlink and do not wait for a FIFO to be
// written to.
const readFlags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK

// validate returns errdefs.ErrInvalidArgument unless d is <algorithm>:<hex> with a supported
// algorithm.
func validate(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// digestOf returns the digest at the end of an ingest ref, as in `default/7/layer-sha256:<hex>`, or
// "" if it has none.
func digestOf(ref string) digest.Digest {
	i := strings.LastIndexByte(ref, ':')
	if i < 0 {
		return ""
	}
	start := i
	for start > 0 && (ref[start-1] >= 'a' && ref[start-1] <= 'z' || ref[start-1] >= '0' && ref[start-1] <= '9') {
		start--
	}
	d := digest.Digest(ref[start:])
	if d.Validate() != nil {
		return ""
	}
	return d
}
