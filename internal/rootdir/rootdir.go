// Package rootdir manages the entries of a root, the one directory that holds everything: it names
// them, gives them their position when they are recorded, and deletes them.
//
// It owns the names of what lies in a root's pools (blobs/, ingest/, layers/, rootfs/, snapshots/
// and staging/), not the content: the numbers of layers and snapshots, and the staged names, which
// begin with a dot. An entry has a staged name while it is built and while it waits to be deleted.
//
// Its invariant is I1 of docs/on-disk.md, bytes before record: Place is the only function that
// gives a built entry its position and records it
// (docs/adr/0036-place-bytes-before-record.md).
//
// The surprising rule: an entry is not deleted in its position. One rename gives it a staged name,
// and the background deletes it there.
//
// Package lockorder has the order of the locks. In short: keyed locks of the caller, the gate
// (which Place takes), the numbers, the database. The queue of deletions is a leaf.
package rootdir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/background"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/keylock"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/metadata"
)

// The pools: directories of the root each of which may be a file system, or have a project quota,
// of its own. What becomes an entry of a pool is built in that pool, and deleted in it. See
// docs/adr/0017.
const (
	Blobs     = "blobs"     // <algorithm>/<hex>
	Ingest    = "ingest"    // <hash of a ref>/
	Layers    = "layers"    // <number>/
	Rootfs    = "rootfs"    // <algorithm>/<hex>/ and <algorithm>/<hex>.seal
	Snapshots = "snapshots" // <number>/
	Scratch   = "staging"   // files of a running command; all of it is garbage when another process opens the root
)

// nested are the pools whose entries lie in a directory for each digest algorithm.
var nested = map[string]bool{Blobs: true, Rootfs: true}

// Options of Open. nil means the zero value.
type Options struct {
	// Pools are the pools that the Dir makes if they are missing and that it deletes leftovers
	// from. Zero value: none.
	Pools []string
	// TrashPool is the pool in which entries wait to be deleted, whichever pool they come from.
	// Zero value: each waits in the directory that it was in.
	TrashPool string
	// Remove deletes a file or a whole tree, and goes on past what it cannot delete. It calls
	// freed, unless that is nil, with the bytes of disk blocks that each removal gives back. It
	// returns a leftover.Error for what remains, and ends early with the error of ctx. nil:
	// os.RemoveAll, which does not end early.
	Remove func(ctx context.Context, path string, freed func(bytes int64)) error
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
	// ReadOnly forbids every change. false: the root can be written.
	ReadOnly bool
}

// Dir is an open root directory, or a part of one: the pools of one store, with what keeps its
// sweeps, placements and deletions in order. All methods may be called by several goroutines at
// once.
type Dir struct {
	root  string
	db    *metadata.DB
	opts  Options
	fs    fsys.FS
	names *names

	numbers  numbers
	queue    queue
	deleting keylock.Locks // by path: a tree may be found left over, and queued, twice
	work     background.Group
	leftover *time.Timer // lists what earlier processes left in the pools; nil until DeleteLeftovers

	// journaled are the pools in which a sync of a file also makes earlier changes of directories durable.
	journaled map[string]bool

	// gate is held for reading while an entry has its position but no record yet, and for writing
	// by a sweep while it looks for entries without a record.
	gate lockorder.RWMutex
}

// Open opens the pools in opts of a root, an existing directory, and makes those that are missing.
// db is the open database of the root; it stays the caller's to close. It returns
// errdefs.ErrFailedPrecondition if a pool is something else than a directory.
func Open(root string, db *metadata.DB, opts *Options) (*Dir, error) {
	d := &Dir{
		root: root, db: db, fs: fsys.OS, names: newNames(), journaled: map[string]bool{},
		numbers: numbers{mu: lockorder.Mutex{Rank: lockorder.Numbers}}, gate: lockorder.RWMutex{Rank: lockorder.Gate},
	}
	if opts != nil {
		d.opts = *opts
	}
	if d.opts.FS != nil {
		d.fs = d.opts.FS
	}
	if d.opts.Remove == nil {
		d.opts.Remove = removeAll
	}
	if _, err := os.Stat(root); err != nil {
		return nil, errclass.Ensure(err)
	}
	if d.opts.ReadOnly {
		return d, nil
	}
	for _, pool := range d.opts.Pools {
		if err := d.openPool(pool); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *Dir) openPool(pool string) error {
	var st unix.Stat_t
	err := unix.Lstat(d.Path(pool), &st)
	if errors.Is(err, unix.ENOENT) {
		err = errors.Join(d.fs.Mkdir(d.Path(pool), 0o700), unix.Lstat(d.Path(pool), &st))
	}
	if err != nil {
		return errclass.Ensure(fmt.Errorf("%s/: %w", pool, err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s/: not a directory: mount or bind another disk there instead of a link: %w",
			pool, errdefs.ErrFailedPrecondition)
	}
	d.journaled[pool] = isJournaled(d.Path(pool))
	return nil
}

// closeGrace is how long Close lets deletions go on: mostly those of a pull that failed. The next
// sweep, or the next process that has the root open for a while, deletes the rest.
const closeGrace = 500 * time.Millisecond

// Close ends the deletions. Trash and Delete may still be called: what they are given stays for the
// next process.
func (d *Dir) Close() {
	for end := time.Now().Add(closeGrace); !d.queue.idle() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	d.work.Stop()
	if d.leftover != nil && d.leftover.Stop() {
		d.work.Done()
	}
	d.work.Wait()
}

// Path returns the path of elem below the root.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// KeepSweepsAway makes BeginSweep wait until done is called: for an entry that is in its position
// but has no record, or whose record is gone while the entry is still in use.
func (d *Dir) KeepSweepsAway() (done func()) {
	d.gate.RLock()
	return d.gate.RUnlock
}

// BeginSweep waits until every entry that has its position is recorded, and keeps others from
// getting one until end is called: an entry without a record is garbage then.
func (d *Dir) BeginSweep() (end func()) {
	d.gate.Lock()
	return d.gate.Unlock
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
