// Package tank keeps OCI images on one machine: it pulls them, keeps their blobs by digest, and serves each
// as one plain directory, its root filesystem.
//
// It owns a root: the directory that holds everything (docs/on-disk.md). One process owns a root at a time.
//
// Its invariant: what Pull has returned stays in the root, verified and, unless NoSync asked otherwise, on
// the disk, until Remove, whatever happens to the process or the machine.
//
// The surprising rule: a rootfs is a template that several programs may read. A program that wants to write
// makes a copy of its own; see [Clone].
//
// # Map
//
// [Service] is what a root does for programs; [*Tank] is the service of a root that this process owns.
// These packages are below, and docs/architecture.md shows how a reference, a blob and a snapshot go
// through them:
//
//   - [github.com/tank-snapshotter/tank/cmd/tank-snapshotter]: the command line and the daemon
//   - [github.com/tank-snapshotter/tank/plugin/admin]: the service of a root that another process owns
//   - [github.com/tank-snapshotter/tank/plugin]: containerd's services for a root
//   - [github.com/tank-snapshotter/tank/binding]: which holder a containerd acts for
//   - [github.com/tank-snapshotter/tank/resolver]: from a reference to verified blobs
//   - [github.com/tank-snapshotter/tank/resolver/auth]: the user's credentials for registries
//   - [github.com/tank-snapshotter/tank/resolver/hostsdir]: hosts.toml files and certificates
//   - [github.com/tank-snapshotter/tank/content]: blobs by digest, and unfinished downloads
//   - [github.com/tank-snapshotter/tank/snapshot]: containerd's snapshots over layers
//   - [github.com/tank-snapshotter/tank/snapshot/record]: the durable records of snapshots
//   - [github.com/tank-snapshotter/tank/snapshot/layer]: layers and root filesystems, from blobs to directories
//   - [github.com/tank-snapshotter/tank/snapshot/entry]: the vocabulary of layers
//   - [github.com/tank-snapshotter/tank/snapshot/unpack]: from the tar of a layer to a directory
//   - [github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer]: what the entries of a tar mean
//   - [github.com/tank-snapshotter/tank/snapshot/unpack/stream]: the bytes of a layer
//   - [github.com/tank-snapshotter/tank/snapshot/unpack/decompress]: the compressions of a layer
//   - [github.com/tank-snapshotter/tank/snapshot/unpack/inflate]: the gzip decoder
//   - [github.com/tank-snapshotter/tank/metadata]: what a root holds and who holds it
//
// Packages that are no promise to other programs are below internal: [rootlock] decides what a root is and
// who owns it, [rootdir] gives entries their place, [ocilayout] writes index.json, [catalog] has the
// records of images, [usage] and [mounts] count what a holder keeps, [rebuild] makes a lost database again,
// [follow] reads blobs that are being written, and the rest are tools that docs/architecture.md lists.
//
// For tests there are [github.com/tank-snapshotter/tank/snapshot/model], the independent model of a layer,
// with [github.com/tank-snapshotter/tank/snapshot/model/random] and
// [github.com/tank-snapshotter/tank/snapshot/model/images],
// [github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest] and
// [github.com/tank-snapshotter/tank/resolver/registrytest].
//
// [rootlock]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/rootlock
// [rootdir]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/rootdir
// [ocilayout]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/ocilayout
// [catalog]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/catalog
// [usage]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/usage
// [mounts]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/mounts
// [rebuild]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/rebuild
// [follow]: https://pkg.go.dev/github.com/tank-snapshotter/tank/internal/follow
package tank

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/copies"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/keylock"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/ocilayout"
	"github.com/tank-snapshotter/tank/internal/reserve"
	"github.com/tank-snapshotter/tank/internal/rootlock"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// ErrNoRoot is returned by an Open that may not make a root if the directory is missing or empty. Its class is
// errdefs.ErrNotFound.
var ErrNoRoot = rootlock.ErrNoRoot

// IsRoot reports whether a directory is a root. A directory that this process may not read counts as one.
func IsRoot(dir string) bool { return rootlock.IsRoot(dir) }

// Options of Open.
type Options struct {
	// Daemon marks the root as a daemon's, for good: layers are kept beside the rootfs, because containerd
	// uses them. false: the root is what it was.
	Daemon bool
	// Directory has snapshots served as directories of their own, without overlay. false: they are overlay
	// mounts. A root may be opened in one mode and later in the other.
	Directory bool
	// Containerd is the content store of a containerd that does not use the root's (ADR 9): layers whose
	// blobs are not in the root are read from it. nil: containerd uses the root's content store.
	Containerd ContainerdContent
	// SkipKnownBlobs keeps containerd from fetching blobs whose layers are unpacked already, so its images
	// lack these blobs. false: containerd gets all blobs of its images.
	SkipKnownBlobs bool
	// UnsyncedCommits lets a power cut damage what containers and builds committed shortly before. false: a commit
	// waits until what was written is on the disk.
	UnsyncedCommits bool
	// Existing has Open return ErrNoRoot in a directory that is missing or empty. false: a root is made there.
	Existing bool
	// AllowReadOnly also opens a root that cannot be written, for example on a read-only mount. Then
	// methods that would change the root return errdefs.ErrFailedPrecondition. false: Open returns that
	// error for such a root.
	AllowReadOnly bool
	// Observe sees downloads, unpacks, syncs, sweeps and cache hits. nil: nobody observes.
	Observe observe.Observer
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
}

// Tank is an open root.
type Tank struct {
	root      string
	observe   observe.Observer // may be nil
	readOnly  bool
	daemon    bool
	reserve   *reserve.Reserve // for operations that free space on a full disk
	lock      *rootlock.Lock
	db        *metadata.DB
	content   *content.Store
	snapshots *snapshot.Store
	binder    *binding.Binder
	sweeper   *sweeper
	tokens    *resolver.TokenCache // shared by all pulls
	flights   *resolver.InFlight   // so that two pulls download nothing twice

	connections resolver.Connections // for the next pull too

	// refs has a lock per reference. A second pull of a reference waits for the first, and then finds its image
	// or continues its downloads.
	refs keylock.Locks

	// images is held for reading while a pull answers from a record, and for writing while records are removed.
	images lockorder.RWMutex

	// mu guards pulls, the references whose pulls are running.
	mu    sync.Mutex
	pulls map[string]bool

	// shortage is held while a goroutine makes room on a full disk.
	shortage lockorder.Mutex

	layout *ocilayout.Layout
	copies *copies.Copies // of records, in case the database is lost
}

// Open opens a root. It makes one in a directory that is missing or empty, unless opts forbid that. opts
// may be nil.
//
// It returns errdefs.ErrUnavailable while another process owns the root; ErrNoRoot; errdefs.ErrFailedPrecondition for
// a directory of another program, a root of another user, a root that other users can write to, a root of a newer
// Tank, and one on a file system that lacks what Tank needs; and errdefs.ErrDataLoss if the root's database is
// missing or damaged, which Rebuild repairs.
func Open(root string, opts *Options) (t *Tank, err error) {
	if opts == nil {
		opts = &Options{}
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	spare := reserve.New(root)
	err = spare.Spend(func() error {
		t, err = open(root, spare, opts)
		return err
	})
	return t, errclass.Ensure(err)
}

// open opens a root. If the disk is full, its caller calls it again after giving up the reserve.
func open(root string, spare *reserve.Reserve, opts *Options) (_ *Tank, err error) {
	if opts.Daemon && strings.ContainsAny(root, ",:\\") {
		return nil, fmt.Errorf("root %s: the options of overlay cannot have a comma, colon or backslash in a path: %w",
			root, errdefs.ErrInvalidArgument)
	}
	t := &Tank{
		root: root, observe: opts.Observe, reserve: spare, layout: ocilayout.New(root, opts.FS),
		pulls:  map[string]bool{},
		tokens: resolver.NewTokenCache(), flights: resolver.NewInFlight(),
		images:   lockorder.RWMutex{Rank: lockorder.Images},
		shortage: lockorder.Mutex{Rank: lockorder.Shortage},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	t.lock, err = rootlock.Take(root, &rootlock.Options{
		Make: !opts.Existing, AllowReadOnly: opts.AllowReadOnly, FS: opts.FS,
		Overlay: opts.Daemon && !opts.Directory,
	})
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
	t.readOnly = t.lock.ReadOnly()
	err = t.openDatabase(opts)
	if !errdefs.IsFailedPrecondition(err) && !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
		// A root that is not refused. If the database cannot be opened, the file system may be the reason.
		err = cmp.Or(t.lock.Fit(opts.Daemon && !opts.Directory), err)
	}
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
	t.copies = copies.New(root, t.db, opts.FS)
	recorded := false
	if err := t.db.View(func(tx *metadata.Tx) error {
		recorded = tx.Flag(metadata.FlagDaemon) != ""
		return nil
	}); err != nil {
		return nil, err
	}
	t.daemon = recorded || t.lock.Daemon() || opts.Daemon
	t.sweeper = newSweeper(func(ctx context.Context) error {
		_, err := t.content.Sweep(ctx)
		t.reserve.Keep()
		return err
	})
	t.content, err = content.Open(root, t.db, &content.Options{
		FS: opts.FS, Observe: opts.Observe, ReadOnly: t.readOnly,
		OnIngest:   func(d digest.Digest) { t.snapshots.Layers().Ingested(d) },
		OnGarbage:  func(digest.Digest) { t.sweeper.request() },
		LiveHolder: t.live, OnShortage: t.makeRoom, Needed: t.layout.ForeignBlobs,
	})
	if err != nil {
		return nil, err
	}
	layers := &snapshot.Options{
		FS: opts.FS, Observe: opts.Observe,
		ReadOnly: t.readOnly, Unpack: unpackOptions(t.lock.Access()), Directory: opts.Directory,
		SkipKnownBlobs: opts.SkipKnownBlobs, UnsyncedCommits: opts.UnsyncedCommits,
	}
	blobs := layersFrom(t.content, opts.Containerd, layers)
	t.snapshots, err = snapshot.Open(root, t.db, blobs, layers)
	if err != nil {
		return nil, err
	}
	t.binder = binding.New(t.db, &binding.Options{
		HandOver: t.handOver, SetAside: t.snapshots.SetAside, Changed: t.copies.KeepBindings,
	})
	if t.readOnly {
		return t, nil
	}
	if err := t.reserve.Spend(t.writeLayout); err != nil && !reserve.Full(err) {
		return nil, err
	}
	if t.daemon {
		t.copies.KeepBindings()
		t.snapshots.Layers().CompareAll()
		err = t.recordDaemon(recorded)
	}
	return t, err
}

// openDatabase opens metadata.db. It makes a missing one in an unused root, and returns errdefs.ErrDataLoss
// in any other.
func (t *Tank) openDatabase(opts *Options) error {
	path := filepath.Join(t.root, rootlock.Database)
	existing := true
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		unused, err := t.unused()
		switch {
		case err != nil:
			return err
		case unused && (opts.Existing || t.readOnly):
			return ErrNoRoot
		}
		existing = !unused
	}
	var err error
	t.db, err = metadata.Open(path, &metadata.Options{
		Existing: existing, ReadOnly: t.readOnly, Spend: t.reserve.Spend, FS: opts.FS,
		Resident: opts.Daemon,
	})
	if err == nil && opts.Daemon { // which makes it again
		err = t.db.Sound()
	}
	if errdefs.IsDataLoss(err) && cause.Of(err).Kind == "" {
		err = cause.Mark(err, cause.Database, t.root)
	}
	return err
}

// unused reports whether the root has nothing that a database could have recorded. Then a missing database
// was never made; otherwise it was lost.
func (t *Tank) unused() (bool, error) {
	if unused, err := t.lock.Unused(); err != nil || !unused {
		return false, err
	}
	none, err := copies.Empty(t.root)
	return none && t.layout.Empty(), err
}

// unpackOptions are the options of extractions by a process with this access.
func unpackOptions(a rootlock.Access) unpack.Options {
	uids, gids := a.IDs()
	return unpack.Options{Unprivileged: a.Unprivileged(), Confined: a.Confined(), UIDs: uids, GIDs: gids}
}

// recordDaemon marks the root as a daemon's: in the database unless it is recorded there, and in the mark,
// which remains if the database is lost.
func (t *Tank) recordDaemon(recorded bool) error {
	if err := t.lock.MarkDaemon(); err != nil {
		return fmt.Errorf("root %s: mark: %w", t.root, err)
	}
	if recorded {
		return nil
	}
	return t.db.Update(func(tx *metadata.Tx) error { return tx.SetFlag(metadata.FlagDaemon, "yes") })
}

// ReadOnly reports whether the root cannot be written; see Options.AllowReadOnly.
func (t *Tank) ReadOnly() bool { return t.readOnly }

// Root returns the absolute path of the root.
func (t *Tank) Root() string { return t.root }

// Content returns the store of the root's blobs, for a program that serves them.
func (t *Tank) Content() *content.Store { return t.content }

// Binder returns the binder, which decides for which holder a containerd acts. It is for a program that
// serves the root.
func (t *Tank) Binder() *binding.Binder { return t.binder }

// Snapshots returns the store of the root's layers and snapshots, for a program that serves them.
func (t *Tank) Snapshots() *snapshot.Store { return t.snapshots }

// Spend calls fn. If fn fails because the disk is full, Spend gives up the root's reserve and calls fn
// again. It is for writes that a process needs to own the root and to free space there.
func (t *Tank) Spend(fn func() error) error { return t.reserve.Spend(fn) }

// KeepReserve makes the root's reserve if it is missing and the disk has room for it.
func (t *Tank) KeepReserve() { t.reserve.Keep() }

// spendUpdate changes records to release something. If the disk is full, it gives up the reserve and calls
// fn again.
func (t *Tank) spendUpdate(fn func(*metadata.Tx) error) error {
	return t.reserve.Spend(func() error { return t.db.Update(fn) })
}

// Close cancels background work, waits for its end, and gives up the root.
func (t *Tank) Close() error {
	var errs []error
	t.connections.Close()
	if t.sweeper != nil {
		t.sweeper.close()
	}
	if t.binder != nil {
		t.binder.Close()
	}
	if t.snapshots != nil {
		if t.daemon && !t.readOnly {
			errs = append(errs, t.snapshots.Layers().Sync(context.Background()))
		}
		errs = append(errs, t.snapshots.Close())
	}
	if t.content != nil {
		errs = append(errs, t.content.Close())
	}
	if t.db != nil {
		errs = append(errs, t.db.Close())
	}
	if t.reserve != nil {
		t.reserve.Restore()
	}
	if t.lock != nil {
		errs = append(errs, t.lock.Close())
	}
	return errors.Join(errs...)
}

// live reports whether an unfinished download of a holder may still be resumed.
func (t *Tank) live(h metadata.Holder) bool {
	live := true
	if err := t.db.View(func(tx *metadata.Tx) error {
		if h.IsContainerd() { // a containerd aborts its own downloads, unless its database has got another holder
			bs, err := metadata.Bindings(tx)
			_, bound := metadata.BindingOf(bs, h)
			live = bound || tx.HoldsAny(h)
			return err
		}
		pulls, err := tx.Pulls()
		if err != nil {
			return err
		}
		live = false
		for _, p := range pulls {
			live = live || metadata.PullHolder(p.Ref) == h
		}
		return nil
	}); err != nil {
		return true
	}
	return live
}
