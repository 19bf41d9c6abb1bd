// Package snapshot owns the directories: unpacked layers and fix-ups, assembled rootfs, and what containers write. It
// serves containerd's snapshots.Snapshotter over them and mounts nothing itself.
//
// On disk it owns layers/<id>/{fs,seal}, rootfs/<alg>/<hex> with <hex>.seal, and snapshots/<id>/{fs,work}. Each of the
// three may be a file system of its own (pools.go). Names in them that begin with a dot are being built or deleted.
//
// Its invariants (I1 to I4 and I6 in docs/on-disk.md): a directory is in its place before its record is, and its record is gone
// before it is; a layer is visible only after its diff ID was verified, and never modified afterwards; what is recorded
// as provisional is compared with its seal before it is served, once this process did not write it itself.
//
// The surprising rule: a layer is unpacked once, keyed by diff ID, without looking at its parents. All that depends on a
// parent (directories that the tar only implies, links to lower files) goes into a fix-up, a small directory that is
// stacked right above the layer; most layers need none.
package snapshot

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/background"
	"github.com/tank-snapshotter/tank/internal/budget"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/keylock"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// Blobs is where a Store reads layers from.
type Blobs interface {
	// Open reads a blob's bytes from the beginning, and follows it while it is still being written. Close, which may come twice, ends a
	// Read that waits. io.EOF says that the bytes are those of the digest. ctx carries the values of the call that wants the blob.
	Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	// Size says whether the whole blob is here. No lock is held meanwhile.
	Size(d digest.Digest) (int64, bool)
}

// Layer is one layer of an image: its blob, and the diff ID that the image's config claims for it.
type Layer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest // empty when nobody claims one
}

// Options of Open.
type Options struct {
	// Unpack is how layers are extracted. The zero value is right for root with root's rights.
	Unpack unpack.Options
	// Unpacks is how many layers whose blobs are here are unpacked at once. Twice as many that are being downloaded come
	// on top. 0 means 16.
	Unpacks int
	// SyncDelay is how long the background waits, after a layer was committed, for others to share one sync with; while layers
	// are being unpacked it waits on, but no longer than 5 seconds. 0 means 100 ms, less than 0 that nothing is synced but by Sync.
	SyncDelay time.Duration
	// Access returns errdefs.ErrNotFound if containerd would not let the call that ctx belongs to read a blob. nil: a call
	// may read what Blobs has.
	Access func(ctx context.Context, blob digest.Digest) error
	// SkipKnownBlobs answers the extraction of a known layer so that containerd does not fetch the layer's blob, unless
	// Adoptable reports that it would not fetch it anyway. false: containerd gets the blob of every layer, as with its
	// own overlayfs, and a layer is given only for a blob that the caller may read.
	SkipKnownBlobs bool
	// Adoptable reports whether containerd would take a blob into its records without fetching it. nil: it would take
	// those that Blobs has. Only used with SkipKnownBlobs.
	Adoptable func(ctx context.Context, blob digest.Digest) bool
	// UserXattr marks overlay's directories in user.overlay.*, for mounts inside a user namespace.
	UserXattr bool
	// Directory serves snapshots without overlay: what a container writes to is a copy of all that its parent shows. Extractions stay
	// in overlay's form, which nobody mounts. A root may be opened the one way and the other (docs/adr/0008).
	Directory bool
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
	// ReadOnly has the store change nothing in the root, whose layers and rootfs are read only. false: Open makes
	// directories and deletes leftovers.
	ReadOnly bool
}

// memoryBudget is what the entries of layers that are unpacked and planned take at once. One layer may have what its
// limits allow on top; see docs/adr/0023-memory.md for the sum.
const memoryBudget = 96 << 20

// Store is the directories of one root.
type Store struct {
	root    string
	db      *metadata.DB
	blobs   Blobs
	opts    Options
	dir     *rootdir.Dir
	unpacks *unpacks
	syncer  *syncer
	memory  *budget.Budget // what extractions and plans keep at once
	locks   keylock.Locks
	work    background.Group // fix-ups, removals, unpacks: what outlives the call that began it
	clones  func() bool      // whether files can share extents

	// mu guards what follows.
	mu       sync.Mutex
	dirs     map[string]string          // name under snapshots/ -> snapshot key
	suspects map[metadata.Node]struct{} // provisional records that another process left
}

// Open opens the directories under root, an existing directory. Errors are of errdefs' classes.
func Open(root string, db *metadata.DB, blobs Blobs, opts *Options) (*Store, error) {
	s := &Store{
		root: root, db: db, blobs: blobs, suspects: map[metadata.Node]struct{}{},
	}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.Unpacks == 0 {
		s.opts.Unpacks = 16
	}
	if s.opts.SyncDelay == 0 {
		s.opts.SyncDelay = 100 * time.Millisecond
	}
	s.opts.UserXattr = s.opts.UserXattr || s.opts.Unpack.Unprivileged || s.opts.Unpack.Confined // who may not write trusted.*
	s.opts.Unpack.UserXattr = s.opts.UserXattr
	var err error
	s.dir, err = rootdir.Open(root, db, &rootdir.Options{
		Pools: pools, Remove: nodes.RemoveAll, FS: s.opts.FS, ReadOnly: s.opts.ReadOnly,
	})
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.clones = sync.OnceValue(s.canClone)
	s.memory = budget.New(memoryBudget)
	s.unpacks = newUnpacks(s)
	s.syncer = newSyncer(s)
	if s.opts.ReadOnly {
		return s, nil
	}
	return s, s.dir.DeleteLeftovers()
}

// load reads which snapshot owns which directory, and what another process left provisional.
func (s *Store) load() error {
	return s.db.View(func(tx *metadata.Tx) (err error) {
		if s.dirs, err = tx.SnapshotDirs(); err != nil {
			return err
		}
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			if l, err := tx.Layer(key); err != nil {
				return err
			} else if !l.Durable {
				s.suspects[metadata.LayerNode(key)] = struct{}{}
			}
		}
		for _, key := range tx.Keys(metadata.KindRootfs, "", -1) {
			if r, err := tx.Rootfs(digest.Digest(key)); err != nil {
				return err
			} else if !r.Durable {
				s.suspects[metadata.RootfsNode(r.Manifest)] = struct{}{}
			}
		}
		return nil
	})
}

// Close waits for background work and closes the store. What is provisional stays so.
func (s *Store) Close() error {
	s.dir.Close()
	s.work.Stop()
	s.work.Wait()
	return s.syncer.close()
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// pools are the directories of the root that a Store owns.
var pools = []string{rootdir.Layers, rootdir.Rootfs, rootdir.Snapshots, rootdir.Scratch}

// canClone reports whether a copy of a layer can share its extents, in one of the places where layers are copied to.
func (s *Store) canClone() bool {
	return nodes.CanClone(s.path("layers"), s.path("snapshots")) || nodes.CanClone(s.path("layers"), s.path("rootfs"))
}
