package layer

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/background"
	"github.com/tank-snapshotter/tank/internal/budget"
	"github.com/tank-snapshotter/tank/internal/keylock"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/doubts"
	"github.com/tank-snapshotter/tank/snapshot/internal/durable"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/replaced"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// Blobs is where a Store reads layers from.
type Blobs interface {
	// Open reads a blob from its beginning. If the blob still arrives, the reader follows the download. io.EOF means
	// that all bytes were read and that they have the digest d. ctx carries the values of the call that wants the blob.
	// Close may be called more than once, and ends a Read that waits for bytes.
	Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	// Size returns the size of a blob in bytes and whether all of it is here. It holds no lock.
	Size(d digest.Digest) (int64, bool)
}

// Pair is a layer as an image describes it: a blob, and the diff ID that the image's config claims for it.
type Pair struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest // empty if no config claims one
}

// Options of Open. nil means the zero value.
type Options struct {
	// Unpack is how layers are extracted. The zero value is for root with all its rights.
	Unpack unpack.Options
	// SyncDelay is how long the background waits after SyncSoon, so that more layers share one sync. While layers are
	// being unpacked it waits on, for 5 seconds at most. 0 means 100 ms. If it is negative, only Sync syncs.
	SyncDelay time.Duration
	// UserXattr writes overlay's marks as user.overlay.*, for mounts inside a user namespace. false: trusted.overlay.*.
	UserXattr bool
	// Unmounted means that overlay mounts no layer. Servable then accepts whiteouts that overlay does not understand.
	Unmounted bool
	// ReadOnly forbids every change of the root. false: the root can be written.
	ReadOnly bool
	// Rebuild builds a broken fix-up again, or a directory that BuildRoot made, for a snapshot that
	// needs it. nil: fix-ups can't be repaired.
	Rebuild func(ctx context.Context, key string) (*Built, error)
	// Observe sees unpacks, syncs and hits. nil: nobody does.
	Observe observe.Observer
}

// memoryBudget is the number of bytes that all extractions and plans together keep in memory for the entries of
// layers. One layer may exceed it up to its own limits; docs/adr/0023-memory.md has the sum.
const memoryBudget = 96 << 20

// Store has the layers, fix-ups and rootfs of one root.
type Store struct {
	dir     *rootdir.Dir
	at      paths
	db      *metadata.DB
	blobs   Blobs
	opts    Options
	unpacks *unpacks
	syncer  *durable.Syncer
	doubts  doubts.Set
	memory  *budget.Budget // for the entries that extractions and plans keep
	locks   keylock.Locks
	modes   modes
	readers replaced.Readers
	work    background.Group // unpacks and comparisons, which outlive the call that begins them
	clones  func() bool      // whether copies of layers share extents with them
}

// Open returns the layers of a root. dir has the pools layers and rootfs; dir and db stay the caller's to close.
func Open(dir *rootdir.Dir, db *metadata.DB, blobs Blobs, opts *Options) (*Store, error) {
	s := &Store{dir: dir, at: paths{dir}, db: db, blobs: blobs}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.SyncDelay == 0 {
		s.opts.SyncDelay = 100 * time.Millisecond
	}
	s.opts.Unpack.UserXattr = s.opts.UserXattr
	if err := s.doubts.Load(db); err != nil {
		return nil, err
	}
	s.clones = sync.OnceValue(func() bool {
		layers := dir.Path(rootdir.Layers)
		return nodes.CanClone(layers, dir.Path(rootdir.Snapshots)) || nodes.CanClone(layers, dir.Path(rootdir.Rootfs))
	})
	s.memory = budget.New(memoryBudget)
	s.unpacks = newUnpacks(s)
	s.syncer = durable.New(dir, db, &durable.Options{
		Delay: s.opts.SyncDelay, Busy: s.unpacks.busy, Observe: s.opts.Observe,
	})
	return s, nil
}

// Close ends the background work and waits for it. Provisional records stay provisional.
func (s *Store) Close() error {
	s.work.Stop()
	s.work.Wait()
	return s.syncer.Close()
}

// Sync returns when all layers and rootfs that were recorded before the call are durable.
func (s *Store) Sync(ctx context.Context) error { return s.syncer.Sync(ctx) }

// SyncSoon has provisional records made durable in the background, after Options.SyncDelay.
func (s *Store) SyncSoon() {
	if s.opts.SyncDelay >= 0 {
		s.syncer.Begin()
	}
}

// Hit tells the observer that a layer that is here made an extraction unnecessary. size is that of its blob in bytes, 0
// if it is unknown.
func (s *Store) Hit(ctx context.Context, rec metadata.Layer, size int64) {
	observe.Note(ctx, s.opts.Observe, observe.Event{
		Kind: observe.Hit, Subject: rec.DiffID.String(), Bytes: size,
	}, observe.Result{})
}

// Lower returns a layer or fix-up as a directory that can be mounted or read in a stack. The path is valid as long as
// the record is. Callers must not look for anything beside it.
func (s *Store) Lower(rec metadata.Layer) overlay.Dir {
	return overlay.Dir{Name: rec.Key, Path: s.at.fs(rec.Dir)}
}

// Readers knows who reads directories of layers, and how many layers have got new ones.
func (s *Store) Readers() *replaced.Readers { return &s.readers }

// IsLower reports whether path is one that Lower returns. It compares text, and looks at no file.
func (s *Store) IsLower(path string) bool {
	rest, ok := strings.CutPrefix(path, s.dir.Path(rootdir.Layers)+"/")
	name, tail, _ := strings.Cut(rest, "/")
	return ok && tail == "fs" && filepath.IsLocal(name)
}

// Root returns the entry of a layer's root directory.
func (s *Store) Root(rec metadata.Layer) (*entry.Entry, error) {
	f, err := nodes.OpenRoot(s.at.fs(rec.Dir))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Entry(".")
}

// Record returns the record of a layer or fix-up; errdefs.ErrNotFound if there is none.
func (s *Store) Record(key string) (rec metadata.Layer, err error) {
	err = s.db.ViewPending(func(tx *metadata.Tx) error {
		rec, err = tx.Layer(key)
		return err
	})
	return rec, err
}

// DeleteReleased deletes the directories of those layers that have no record any more.
func (s *Store) DeleteReleased(layers []metadata.Layer) error {
	var gone []string
	err := s.db.ViewCommitted(func(tx *metadata.Tx) error {
		for _, l := range layers {
			if now, err := tx.Layer(l.Key); err != nil || now.Dir != l.Dir {
				gone = append(gone, s.at.entry(l.Dir))
			}
		}
		return nil
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	return s.dir.Trash(gone...)
}

// paths has the paths of what a Store owns.
type paths struct{ dir *rootdir.Dir }

// entry is the directory of a layer's entry, which has fs and seal in it.
func (p paths) entry(dir string) string { return p.dir.Path(rootdir.Layers, dir) }

func (p paths) fs(dir string) string { return p.dir.Path(rootdir.Layers, dir, "fs") }

func (p paths) seal(dir string) string { return p.dir.Path(rootdir.Layers, dir, "seal") }

func (p paths) rootfs(manifest digest.Digest) string {
	return p.dir.Path(rootdir.Rootfs, manifest.Algorithm().String(), manifest.Encoded())
}

// DroppedXattrs returns a sentence about the extended attributes that the layer lacks because its file system does not
// have them; "" when it has all.
func DroppedXattrs(l metadata.Layer) string {
	if l.DroppedXattrs == "" {
		return ""
	}
	return fmt.Sprintf("layer %s: the file system of the root does not have these extended attributes, which are left "+
		"out: %s",
		l.DiffID, l.DroppedXattrs)
}
