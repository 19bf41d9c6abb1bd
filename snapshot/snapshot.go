package snapshot

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/background"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/keylock"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// Options of Open. nil means the zero value.
type Options struct {
	// Unpack is how layers are extracted. The zero value is for root with all its rights.
	Unpack unpack.Options
	// SyncDelay is how long the background waits after a commit, so that more layers share one sync. While layers are
	// being unpacked it waits on, for 5 seconds at most. 0 means 100 ms. If it is negative, only Sync syncs.
	SyncDelay time.Duration
	// Access returns errdefs.ErrNotFound if containerd would not let the call with this context read a blob. nil: every
	// call may read all blobs.
	Access func(ctx context.Context, blob digest.Digest) error
	// SkipKnownBlobs answers the extraction of a known layer so that containerd does not download the
	// layer's blob, unless Adoptable reports that it would not do so anyway. false: containerd gets the
	// blob of every layer, as with its own overlayfs snapshotter, and a caller gets a layer only if it
	// may read the blob.
	SkipKnownBlobs bool
	// Adoptable reports whether containerd would take a blob into its records without downloading it.
	// nil: it would take every blob that is here. Only used with SkipKnownBlobs.
	Adoptable func(ctx context.Context, blob digest.Digest) bool
	// UserXattr writes overlay's marks as user.overlay.*, for mounts inside a user namespace. false: trusted.overlay.*,
	// unless Unpack lacks root's rights.
	UserXattr bool
	// Directory serves snapshots without overlay: a container writes to a copy of all that its parent
	// shows. Layers keep overlay's form. A root may be opened in one mode and later in the other
	// (docs/adr/0008-directory-mode.md). false: overlay mode.
	Directory bool
	// UnsyncedCommits makes Commit answer before the files that a container, a build or another differ wrote are on
	// the disk. After a power cut a committed snapshot may then have lost some of them, or their content, and nothing
	// finds that out. false: Commit forces them to the disk.
	UnsyncedCommits bool
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
	// Observe sees unpacks, syncs, sweeps and hits. nil: nobody does.
	Observe observe.Observer
	// ReadOnly forbids every change of the root. false: Open makes directories and deletes leftovers.
	ReadOnly bool
}

// Store is the snapshots of one root, and its layers.
type Store struct {
	root    string
	db      *metadata.DB
	blobs   layer.Blobs
	opts    Options
	dir     *rootdir.Dir
	layers  *layer.Store
	records *record.Writer
	locks   keylock.Locks
	work    background.Group // fix-ups and removals, which outlive the call that begins them

	mu   sync.Mutex        // guards dirs
	dirs map[string]string // name under snapshots/ -> snapshot key
}

// pools are the directories of the root that a Store owns, together with its layers.
var pools = []string{rootdir.Layers, rootdir.Rootfs, rootdir.Snapshots, rootdir.Scratch}

// Open opens the snapshots and layers of a root, an existing directory. It makes the directories that are missing and
// begins to delete leftovers. Errors are of errdefs' classes.
func Open(root string, db *metadata.DB, blobs layer.Blobs, opts *Options) (*Store, error) {
	s := &Store{root: root, db: db, blobs: blobs}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.FS == nil {
		s.opts.FS = fsys.OS
	}
	// A process that lacks root's rights can't write trusted.overlay.*.
	s.opts.UserXattr = s.opts.UserXattr || s.opts.Unpack.Unprivileged || s.opts.Unpack.Confined
	var err error
	s.dir, err = rootdir.Open(root, db, &rootdir.Options{
		Pools: pools, Remove: nodes.RemoveAll, FS: s.opts.FS, ReadOnly: s.opts.ReadOnly,
	})
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
	s.records = record.NewWriter(db, s.dir, s.opts.FS)
	err = db.View(func(tx *metadata.Tx) (err error) {
		s.dirs, err = tx.SnapshotDirs()
		return err
	})
	if err != nil {
		return nil, err
	}
	s.layers, err = layer.Open(s.dir, db, blobs, &layer.Options{
		Unpack: s.opts.Unpack, SyncDelay: s.opts.SyncDelay, UserXattr: s.opts.UserXattr, Unmounted: s.opts.Directory,
		ReadOnly: s.opts.ReadOnly, Rebuild: s.rebuildFixup, Observe: s.opts.Observe,
	})
	if err != nil {
		return nil, err
	}
	if s.opts.ReadOnly {
		return s, nil
	}
	s.work.Go("durable records of snapshots", s.records.Mend)
	return s, s.dir.DeleteLeftovers()
}

// Close ends the background work and waits for it. Provisional records stay provisional.
func (s *Store) Close() error {
	s.dir.Close()
	s.work.Stop()
	s.work.Wait()
	return s.layers.Close()
}

// Layers returns the layers of the root, which the Store closes.
func (s *Store) Layers() *layer.Store { return s.layers }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}
