// Package tank keeps OCI images on one machine: it pulls them, keeps their blobs by digest, and serves each as one plain
// directory, its root filesystem.
//
// It owns a root: the directory that holds everything (docs/on-disk.md), with the files lock, oci-layout and index.json
// right in it and the directories of its packages: metadata, content and snapshot. One process owns a root at a time.
//
// Its invariant: what Pull has returned is there, verified and, unless NoSync asked otherwise, on the disk, until
// Remove; whatever happens to the process or the machine.
//
// The surprising rule: a rootfs is a template that several may read, not a container's own. Who wants to write clones it;
// see Clone.
package tank

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/keylock"
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
	// Daemon marks the root as a daemon's, for good: layers are kept beside the rootfs, because containerd uses them.
	// false: the root is what it was.
	Daemon bool
	// Directory has snapshots served as directories of their own, without overlay. false: as overlay mounts. A root may be opened
	// the one way and the other.
	Directory bool
	// Containerd is read for layers whose blobs are not in the root, and asked what it would fetch: the second install. nil: containerd
	// has no content store but this root.
	Containerd ContainerdContent
	// SkipKnownBlobs has containerd fetch no blob whose layer is unpacked here already, so that its images lack blobs.
	// false: it gets all blobs of its images.
	SkipKnownBlobs bool
	// Existing has Open return ErrNoRoot in a directory that is missing or empty. false: a root is made there.
	Existing bool
	// AllowReadOnly opens a root that can't be written as well, as on a read-only mount: nothing is written then, and
	// what would change something returns errdefs.ErrFailedPrecondition. false: such a root is refused in the same way.
	AllowReadOnly bool
}

// Tank is an open root.
type Tank struct {
	root      string
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

	// refs are locked by pulls: the second one of a reference finds what the first has brought, or takes over.
	refs keylock.Locks

	// images is held for reading while an answer is made from a record, and for writing while records are removed.
	images sync.RWMutex

	// mu guards pulls: the references of which a pull runs.
	mu    sync.Mutex
	pulls map[string]bool

	// shortage has one goroutine at a time make room on a full disk.
	shortage sync.Mutex

	layout *ocilayout.Layout
}

// Open opens the root, and makes it in a directory that is missing or empty unless opts forbid that; see
// docs/on-disk.md.
//
// It returns errdefs.ErrUnavailable while another process owns the root; ErrNoRoot; errdefs.ErrFailedPrecondition for
// a directory of another program, for a root that was made for another user or that others can write to, and for one
// of a newer Tank; and errdefs.ErrDataLoss when the root's database is missing or damaged, which Rebuild repairs.
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
	return t, err
}

// open opens a root that may lie on a full disk, with the reserve that is given up for it.
func open(root string, spare *reserve.Reserve, opts *Options) (_ *Tank, err error) {
	if opts.Daemon && strings.ContainsAny(root, ",:\\") {
		return nil, fmt.Errorf("root %s: overlay's options have no place for a comma, colon or backslash: %w", root, errdefs.ErrInvalidArgument)
	}
	t := &Tank{
		root: root, reserve: spare, layout: ocilayout.New(root, nil), pulls: map[string]bool{},
		tokens: resolver.NewTokenCache(), flights: resolver.NewInFlight(),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	t.lock, err = rootlock.Take(root, &rootlock.Options{Make: !opts.Existing, AllowReadOnly: opts.AllowReadOnly})
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
	t.readOnly = t.lock.ReadOnly()
	if err := t.openDatabase(opts); err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
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
		ReadOnly:   t.readOnly,
		OnIngest:   func(d digest.Digest) { t.snapshots.Layers().Ingested(d) },
		OnGarbage:  func(digest.Digest) { t.sweeper.soon() },
		LiveHolder: t.live,
		OnShortage: t.makeRoom,
		Needed:     t.layout.ForeignBlobs,
	})
	if err != nil {
		return nil, err
	}
	layers := &snapshot.Options{
		ReadOnly: t.readOnly, Unpack: unpackOptions(t.lock.Access()), Directory: opts.Directory, SkipKnownBlobs: opts.SkipKnownBlobs,
	}
	blobs := layersFrom(t.content, opts.Containerd, layers)
	t.snapshots, err = snapshot.Open(root, t.db, blobs, layers)
	if err != nil {
		return nil, err
	}
	t.binder = binding.New(t.db, &binding.Options{HandOver: t.handOver, SetAside: t.snapshots.SetAside})
	if t.readOnly {
		return t, nil
	}
	if err := t.reserve.Spend(t.writeLayout); err != nil && !reserve.Full(err) {
		return nil, err
	}
	if t.daemon {
		t.snapshots.Layers().CompareAll()
		err = t.recordDaemon(recorded)
	}
	return t, err
}

// openDatabase opens metadata.db. A missing one is made in a root that holds nothing yet, and is a loss in any other.
func (t *Tank) openDatabase(opts *Options) error {
	path := filepath.Join(t.root, rootlock.Database)
	existing := true
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		nothing, err := t.unused()
		switch {
		case err != nil:
			return err
		case nothing && (opts.Existing || t.readOnly):
			return ErrNoRoot
		}
		existing = !nothing
	}
	var err error
	t.db, err = metadata.Open(path, &metadata.Options{
		Existing: existing, ReadOnly: t.readOnly, Spend: t.reserve.Spend,
	})
	if errdefs.IsDataLoss(err) && cause.Of(err).Kind == "" {
		err = cause.Mark(err, cause.Database, t.root)
	}
	return err
}

// unused reports whether a root holds nothing that a database could have recorded. Then a missing database was not lost
// but never made.
func (t *Tank) unused() (bool, error) {
	if unused, err := t.lock.Unused(); err != nil || !unused {
		return false, err
	}
	return t.layout.Empty(), nil
}

// unpackOptions are the options of extractions by a process with this access.
func unpackOptions(a rootlock.Access) unpack.Options {
	uids, gids := a.IDs()
	return unpack.Options{Unprivileged: a.Unprivileged(), Confined: a.Confined(), UIDs: uids, GIDs: gids}
}

// recordDaemon marks the root as a daemon's: in the mark too, for the time when the database is lost.
func (t *Tank) recordDaemon(recorded bool) error {
	if err := t.lock.MarkDaemon(); err != nil {
		return fmt.Errorf("root %s: mark: %w", t.root, err)
	}
	if recorded {
		return nil
	}
	return t.db.Update(func(tx *metadata.Tx) error { return tx.SetFlag(metadata.FlagDaemon, "yes") })
}

// ReadOnly reports whether the root can't be written; see Options.AllowReadOnly.
func (t *Tank) ReadOnly() bool { return t.readOnly }

// Root returns the absolute path of the root.
func (t *Tank) Root() string { return t.root }

// Content returns the blobs of the root, for who serves them.
func (t *Tank) Content() *content.Store { return t.content }

// Binder decides for which holder a caller acts; a program that serves the root needs it.
func (t *Tank) Binder() *binding.Binder { return t.binder }

// Snapshots returns the layers and snapshots of the root, for who serves them.
func (t *Tank) Snapshots() *snapshot.Store { return t.snapshots }

// Spend calls fn, and calls it again with the root's reserve given up if fn found the disk full. It is for what an
// owner of the root needs to make room there.
func (t *Tank) Spend(fn func() error) error { return t.reserve.Spend(fn) }

// KeepReserve makes the root's reserve, if it is missing and the disk has room.
func (t *Tank) KeepReserve() { t.reserve.Keep() }

// spendUpdate runs a change of records that releases something, with the reserve if the disk is full. fn may be called
// again.
func (t *Tank) spendUpdate(fn func(*metadata.Tx) error) error {
	return t.reserve.Spend(func() error { return t.db.Update(fn) })
}

// Close ends background work and gives the root up.
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

// live says whether an unfinished download of a holder may still be resumed.
func (t *Tank) live(h metadata.Holder) bool {
	live := true
	if err := t.db.View(func(tx *metadata.Tx) error {
		if h.IsContainerd() { // it aborts its own, unless its database has become another holder's
			bs, err := tx.Bindings()
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

// sweeper frees in the background what containerd let go of: kubelet looks at the free space right after. Its goroutine
// starts with the first request, because most commands never make one.
type sweeper struct {
	kick  chan struct{} // has room for one
	run   func()        // sweeps after each kick until stop
	stop  context.CancelFunc
	done  chan struct{} // closed when run has ended
	start sync.Once     // starts run, or closes done when run is never needed
}

// sweepDelay is how long a sweep waits for more to sweep.
const sweepDelay = 200 * time.Millisecond

func newSweeper(sweep func(context.Context) error) *sweeper {
	ctx, stop := context.WithCancel(context.Background())
	s := &sweeper{kick: make(chan struct{}, 1), stop: stop, done: make(chan struct{})}
	s.run = func() {
		defer close(s.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.kick:
				select { // containerd's collector deletes by the hundred
				case <-time.After(sweepDelay):
				case <-ctx.Done():
					return
				}
				if err := sweep(ctx); err != nil && ctx.Err() == nil {
					log.G(ctx).WithError(err).Warn("sweep")
				}
			}
		}
	}
	return s
}

// soon asks for a sweep.
func (s *sweeper) soon() {
	s.start.Do(func() { go s.run() })
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// close ends the sweep that runs, and returns after it.
func (s *sweeper) close() {
	s.stop()
	s.start.Do(func() { close(s.done) })
	<-s.done
}
