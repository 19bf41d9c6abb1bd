// Package content stores blobs by digest, and the ingests that become blobs.
//
// It owns two directories of the root: blobs/<algorithm>/<hex>, verified blobs, read-only files of mode 0444 in
// directories of mode 0700; and ingest/<hash of a ref>/{data,state}, downloads in progress, resumable. What is to be
// deleted it renames to ingest/.trash-* first. Names that begin with a dot are garbage whenever a root is opened.
// blobs/ and ingest/ may be different file systems: then a blob is copied when it is committed, and deleted where it
// lies.
//
// Its invariants (docs/on-disk.md): bytes before record, record away before bytes (I1); a blob is visible only after its
// digest was verified (I2). Bytes are fsynced, file and directory, before their record. Only Sweep deletes bytes of a blob,
// and only bytes without a record (I5).
//
// The surprising rule: through a HolderStore a hit is a hold. Info, ReaderAt, Update and whatever answers AlreadyExists record
// that the view's holder keeps the blob before they answer, because containerd adopts a blob by one Info and never
// calls again. Store's own Size, Open and ReaderAt hold nothing.
package content

import (
	"cmp"
	"context"
	_ "crypto/sha256" // what digest.Digest.Validate accepts
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/follow"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Options of Open.
type Options struct {
	// OnIngest is called, outside every lock, when a writer was opened for a blob whose digest is known: from its
	// descriptor, or because it ends the ref, as in containerd's `<ns>/<seq>/layer-sha256:<hex>`. nil: nobody is told.
	OnIngest func(digest.Digest)
	// OnGarbage is called, outside every lock, after a Delete released the last hold of a blob: a Sweep would free
	// its bytes now. nil: nobody is told.
	OnGarbage func(d digest.Digest)
	// LiveHolder says whether an unfinished ingest of holder is worth keeping; Sweep removes the others. It is called outside
	// every lock and never for metadata.Containerd, which aborts its own. nil: all are kept.
	LiveHolder func(holder metadata.Holder) bool
	// OnShortage is called, outside every lock, when the disk has no room for a download. It frees space and reports
	// whether it may have freed some; then the download is tried once more. nil: the download fails.
	OnShortage func(ctx context.Context) bool
	// Needed returns blobs that Sweep keeps although they have no record; an error has it keep all. It is called outside
	// every lock, and only if there are blobs without a record. nil: none are kept.
	Needed func() (map[digest.Digest]bool, error)
	// Observe sees sweeps, and a Hit whenever a holder asks for the Info of a blob that is in the store, or wants to
	// write one. nil: nobody observes.
	Observe observe.Observer
	// FS changes the file system. nil: the operating system's.
	FS fsys.FS
	// ReadOnly has Open change nothing in the root. false: Open makes directories and deletes leftovers.
	ReadOnly bool
}

// Stats counts blobs and ingests.
type Stats struct {
	Blobs, Ingests int
	Bytes          int64 // of both
}

// Store is the blobs and ingests of one root. Its methods may be called at any time by anybody.
type Store struct {
	root  string
	db    *metadata.DB
	opts  Options
	fs    fsys.FS
	dir   *rootdir.Dir // names, deletions and the gate of blobs/ and ingest/
	space diskspace.Ledger
	// ingests are the open writers of blobs whose digest is known.
	ingests *follow.Table
	// rehash lets tests slow down the hashing of bytes that an earlier writer left; nil otherwise.
	rehash func(io.Reader) io.Reader
	wg     sync.WaitGroup // deletions that are not durable yet

	// mu guards what follows, and the names below ingest/ against being taken away from under an opening writer.
	mu      sync.Mutex
	closed  bool
	writers map[string]*writer // open writers by stored ref
}

// Open opens blobs/ and ingest/ under root, and creates them when they are missing. root exists; db is its open
// metadata and stays the caller's to close. It returns errdefs.ErrFailedPrecondition when something else than a directory
// has the name of one. nil opts are the defaults.
func Open(root string, db *metadata.DB, opts *Options) (*Store, error) {
	s := &Store{
		root:    root,
		db:      db,
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

// makeDir makes one directory, durably, unless it is there.
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

// Close ends what the store does in the background. Writers and readers that are still open are their owners' to close;
// no new writer is opened.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	s.dir.Wait()
	s.dir.Close()
	return nil
}

// For returns the store as h sees it.
func (s *Store) For(h metadata.Holder) *HolderStore { return &HolderStore{s: s, holder: h} }

// Path returns where the blob is or would be. d must be valid.
func (s *Store) Path(d digest.Digest) string {
	return filepath.Join(s.root, "blobs", d.Algorithm().String(), d.Encoded())
}

// Size returns the bytes of a recorded blob, and whether its file is there with that size. It holds nothing.
func (s *Store) Size(d digest.Digest) (int64, bool) {
	b, err := s.blob(d)
	return b.Size, err == nil
}

// ReaderAt reads a recorded blob without holding it. Only desc.Digest counts. It returns errdefs.ErrNotFound when the
// blob is not recorded, or its file is missing or of another size.
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

// Open reads a blob from its beginning without holding it: the recorded blob or, while that is missing, the largest of
// the ingests that are announced as this blob, as it grows. Read waits for bytes of the ingest. It returns io.EOF after
// this ingest, or another one with the same beginning, was committed as d; errdefs.ErrUnavailable when the ingest was
// truncated, aborted, committed as something else or closed without a commit; and errdefs.ErrNotFound when the blob
// that another writer committed was removed again. The bytes of an ingest are not verified before io.EOF. The end of
// ctx and Close end a Read that waits.
//
// Open returns errdefs.ErrNotFound when the blob is neither recorded nor being written.
func (s *Store) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	for range 2 { // an ingest may be committed between the two parts of the first look
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

// openRecorded opens the file of a blob, under the conditions of ReaderAt.
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

// blob returns the record of a blob whose file is there: errdefs.ErrNotFound otherwise, errdefs.ErrInvalidArgument when d
// is not a digest.
func (s *Store) blob(d digest.Digest) (b metadata.Blob, err error) {
	if err := validate(d); err != nil {
		return b, err
	}
	err = s.db.View(func(tx *metadata.Tx) (err error) {
		b, err = tx.Blob(d)
		return err
	})
	if err != nil {
		return metadata.Blob{}, err
	}
	return b, s.present(b)
}

// present returns errdefs.ErrNotFound unless the blob's file is there and can be what the record says.
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

// openBlob opens the file of a recorded blob, under present's conditions.
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

// readFlags open a file for reading, without following a symlink and without waiting for the writer of a FIFO.
const readFlags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK

// validate refuses what is not exactly <algorithm>:<hex> of an algorithm that can be computed here.
func validate(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// digestOf returns the digest that ends an ingest ref, as in `default/7/layer-sha256:<hex>`, and "" when none does.
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
