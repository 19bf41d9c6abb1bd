package metadata

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	boltErrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata/internal/boltfile"
	"github.com/tank-snapshotter/tank/metadata/internal/resident"
)

// schema is the version of the buckets below. A file of a newer schema is refused.
const schema = 1

// The buckets. The parts of an index key are joined by NUL, which no name may contain.
var (
	bucketMeta      = []byte("meta")      // name -> value: schema, flags, bindings
	bucketBlobs     = []byte("blobs")     // digest -> Blob
	bucketLayers    = []byte("layers")    // layer or fix-up key -> Layer
	bucketRootfs    = []byte("rootfs")    // manifest digest -> Rootfs
	bucketSnapshots = []byte("snapshots") // snapshot key -> Snapshot
	bucketImages    = []byte("images")    // reference -> Image
	bucketPulls     = []byte("pulls")     // reference -> Pull
	bucketHolds     = []byte("holds")     // holder, kind, key -> nothing
	bucketHeld      = []byte("held")      // kind, key, holder -> nothing: holds, by node
	bucketChildren  = []byte("children")  // parent, child -> nothing: snapshots, by parent
	bucketVerified  = []byte("verified")  // blob digest -> diff ID that was computed for it
	bucketDiffs     = []byte("diffs")     // diff ID, blob digest -> nothing: verified, by diff ID

	buckets = [][]byte{
		bucketMeta, bucketBlobs, bucketLayers, bucketRootfs, bucketSnapshots, bucketImages, bucketPulls,
		bucketHolds, bucketHeld, bucketChildren, bucketVerified, bucketDiffs,
	}
	keySchema = []byte("schema")
)

// Options of Open.
type Options struct {
	// Timeout is how long Open waits for another process that has the file open. 0 means 100 ms.
	Timeout time.Duration
	// Spend runs a commit, and may make room on a full disk and run it again; see internal/reserve. A batch with a
	// change of Update is committed without Spend, because that change must not run again. nil: a commit on a full disk
	// fails.
	Spend func(commit func() error) error
	// NoSync leaves commits in the page cache: a power cut may lose the file. It is for tests and temporary roots.
	// false: commits are synced.
	NoSync bool
	// Existing makes Open return errdefs.ErrDataLoss for a missing file. false: Open creates it.
	Existing bool
	// ReadOnly opens an existing file and never writes to it: Update returns errdefs.ErrFailedPrecondition. false: the
	// file is opened for writing.
	ReadOnly bool
	// Resident locks the map of the file in memory, so that no reader waits for the disk. A refusal is only logged.
	// false: the kernel may drop pages and read them again.
	Resident bool
	// FS creates the file, renames it and deletes an unfinished one. It also calls the commits, in which bbolt
	// writes to the file. nil: fsys.OS.
	FS fsys.FS
}

// DB is the open database.
type DB struct {
	bolt     *bolt.DB
	path     string
	fs       fsys.FS // for commits
	pending  pending
	resident *resident.Map                   // nil without Options.Resident
	spend    func(commit func() error) error // Options.Spend
}

// maxFile bounds the size of a database that is opened. A record is a few hundred bytes.
const maxFile = 16 << 30

// Open opens the database at path and creates a missing one. It returns errdefs.ErrUnavailable while another process
// has the file open, errdefs.ErrFailedPrecondition if a newer Tank wrote it, and errdefs.ErrDataLoss if it is empty,
// damaged or not a database of Tank's. Open never treats an existing file as a new one.
func Open(path string, opts *Options) (*DB, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	o.FS = cmp.Or(o.FS, fsys.OS)
	if o.Timeout == 0 {
		o.Timeout = 100 * time.Millisecond
	}
	db, err := open(path, o)
	if err != nil {
		return nil, errclass.Ensure(fmt.Errorf("metadata %s: %w", path, err))
	}
	return db, nil
}

func open(path string, o Options) (*DB, error) {
	if !o.Existing && !o.ReadOnly {
		if err := create(o.FS, path); err != nil {
			return nil, err
		}
	}
	b, err := openFile(path, o)
	if err != nil {
		return nil, err
	}
	db := newDB(b, path, &o)
	if err := db.verifySchema(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if o.Resident {
		db.resident = &resident.Map{}
		db.resident.Keep(b)
	}
	return db, nil
}

func newDB(b *bolt.DB, path string, o *Options) *DB {
	return &DB{
		bolt: b, path: path, fs: o.FS, spend: o.Spend, pending: pending{mu: lockorder.Mutex{Rank: lockorder.Database}},
	}
}

// openFile opens a database, after a check of its pages: bbolt notices a damaged page only when it reads it, takes some
// damage for deleted records, and may allocate without bound for a damaged list.
func openFile(path string, o Options) (b *bolt.DB, err error) {
	var file *os.File
	defer func() {
		// After a panic bbolt leaves the file locked and mapped, and the mapping would keep the lock.
		if err != nil && file != nil {
			_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
			file.Close()
		}
	}()
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	b, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout: o.Timeout, FreelistType: bolt.FreelistMapType, NoSync: o.NoSync, ReadOnly: o.ReadOnly,
		OpenFile: func(path string, flag int, _ os.FileMode) (*os.File, error) {
			if file, err = openExisting(path, flag); err == nil {
				err = cmp.Or(boltfile.Lock(file, o.ReadOnly, o.Timeout), verify(file))
			}
			return file, err
		},
	})
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("the file is missing: %w", errdefs.ErrDataLoss)
	case errors.Is(err, boltErrors.ErrTimeout), errors.Is(err, unix.EWOULDBLOCK):
		return nil, fmt.Errorf("open in another process: %w", errdefs.ErrUnavailable)
	case errors.As(err, new(unix.Errno)), errdefs.IsDataLoss(err):
		return nil, err
	}
	// bbolt found a fault in the file or in its size.
	return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
}

// openExisting opens a regular file that is neither empty nor larger than a database can be. bbolt would turn an empty
// file into a new database.
func openExisting(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag&^os.O_CREATE|regular.Flags, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("not a regular file: %w", errdefs.ErrDataLoss)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("not a regular file: %w", errdefs.ErrDataLoss)
	case st.Size == 0:
		err = fmt.Errorf("the file is empty: %w", errdefs.ErrDataLoss)
	case st.Size > maxFile:
		err = fmt.Errorf("%d bytes are too many for a database: %w", st.Size, errdefs.ErrDataLoss)
	case int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0: // another user could choose which bytes are served
		err = cause.Mark(fmt.Errorf("another user can write to it (uid %d, mode %04o): %w",
			st.Uid, st.Mode&0o7777, errdefs.ErrFailedPrecondition), cause.Exposed, "")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// verify returns errdefs.ErrDataLoss if a page of the file is damaged.
func verify(file *os.File) error {
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	if err := boltfile.Verify(file, fi.Size(), buckets); err != nil {
		return fmt.Errorf("damaged: %w: %w", err, errdefs.ErrDataLoss)
	}
	return nil
}

// create makes the file under another name first, because bbolt can't open a file whose first pages a power cut lost.
func create(fs fsys.FS, path string) (err error) {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	err = fs.Build(tmp, func() error {
		b, err := createFile(fs, tmp)
		if err != nil {
			return err
		}
		return b.Close()
	}, synced)
	if err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return fs.SyncDir(filepath.Dir(path))
}

// synced is the sync of a Build that makes a database: bbolt has synced what it wrote.
func synced() error { return nil }

// createFile makes a database without records. It replaces an unfinished one.
func createFile(fs fsys.FS, path string) (b *bolt.DB, err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	if err := fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b, err = bolt.Open(path, 0o600, &bolt.Options{
		FreelistType: bolt.FreelistMapType,
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			return os.OpenFile(path, flag|os.O_EXCL|unix.O_NOFOLLOW, mode)
		},
	})
	if err != nil {
		return nil, err
	}
	err = b.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keySchema, []byte(strconv.Itoa(schema)))
	})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// verifySchema returns errdefs.ErrDataLoss if the schema is missing, and errdefs.ErrFailedPrecondition if it is newer
// than this program's. There is no older schema yet; a migration will create the buckets that it adds.
func (db *DB) verifySchema() (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	return db.bolt.View(func(tx *bolt.Tx) error {
		var v []byte
		if meta := tx.Bucket(bucketMeta); meta != nil {
			v = meta.Get(keySchema)
		}
		if v == nil {
			return fmt.Errorf("not a database of Tank's: %w", errdefs.ErrDataLoss)
		}
		return notNewer(v)
	})
}

// notNewer returns errdefs.ErrFailedPrecondition for the schema of a newer version, and for one that is not a number.
func notNewer(value []byte) error {
	if n, err := strconv.Atoi(string(value)); err == nil && n <= schema {
		return nil
	}
	return cause.Mark(fmt.Errorf("schema %.20q is newer than %d, written by a newer Tank: %w",
		value, schema, errdefs.ErrFailedPrecondition), cause.Newer, "")
}

// Close commits pending changes, waits for open transactions and closes the file.
func (db *DB) Close() (err error) {
	db.flush(nil)
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	return db.bolt.Close()
}

// Probe begins and ends a read transaction, to show that readers are not blocked. A writer may be: it waits for the
// disk.
func (db *DB) Probe() (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	tx, err := db.bolt.Begin(false)
	if err == nil {
		err = tx.Rollback()
	}
	if err != nil {
		return fmt.Errorf("metadata: probe: %w", err)
	}
	return nil
}

// recoverDamage returns an error of class errdefs.ErrDataLoss for a panic of bbolt's. On a damaged file bbolt panics,
// or reads where nothing is mapped. It gives other errors a class if they have none. It is deferred with the value that
// debug.SetPanicOnFault returned, and restores it.
func recoverDamage(old bool, err *error) {
	debug.SetPanicOnFault(old)
	if p := recover(); p != nil {
		*err = cause.Mark(fmt.Errorf("metadata: damaged: %v: %w", p, errdefs.ErrDataLoss), cause.Database, "")
	}
	if errors.Is(*err, boltErrors.ErrDatabaseNotOpen) {
		*err = fmt.Errorf("metadata: %w: %w", *err, errdefs.ErrUnavailable)
	}
	*err = errclass.Ensure(*err)
}

// View commits pending changes and runs fn in a read transaction. fn must not run a caller's callback (package doc).
func (db *DB) View(fn func(*Tx) error) (err error) {
	db.flush(nil)
	return db.ViewCommitted(fn)
}

// ViewCommitted is like View, but leaves pending changes pending and does not see them: it sees only what is on the
// disk. Background deletion uses it, so that looking does not end a batch early.
func (db *DB) ViewCommitted(fn func(*Tx) error) (err error) {
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	return db.bolt.View(func(tx *bolt.Tx) error { return fn(&Tx{entries: entries{bolt: tx}}) })
}

// apply runs fn in a write transaction and checks the invariant. It adds to drops, unless that is nil, what fn deletes.
func apply(btx *bolt.Tx, fn func(*Tx) error, drops map[string]struct{}) error {
	tx := &Tx{entries{bolt: btx, drops: drops}, map[Node]bool{}}
	if err := fn(tx); err != nil {
		return err
	}
	for n := range tx.touched {
		if tx.has(n) && len(tx.Holders(n)) == 0 {
			return fmt.Errorf("%s %s: record without a holder: %w", n.Kind, n.Key, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
