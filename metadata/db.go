package metadata

import (
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
)

// schema is the version of the buckets below. A file of a newer schema is refused, one of an older is migrated.
const schema = 1

// The buckets. Keys of the indexes are joined by NUL, which no name may contain.
var (
	bucketMeta      = []byte("meta")      // name -> value: schema, and what SetFlag stores
	bucketBlobs     = []byte("blobs")     // digest -> Blob
	bucketLayers    = []byte("layers")    // layer or fix-up key -> Layer
	bucketRootfs    = []byte("rootfs")    // manifest digest -> Rootfs
	bucketSnapshots = []byte("snapshots") // snapshot key -> Snapshot
	bucketImages    = []byte("images")    // reference -> Image
	bucketPulls     = []byte("pulls")     // reference -> when its pull was renewed
	bucketHolds     = []byte("holds")     // holder, kind, key -> nothing
	bucketHeld      = []byte("held")      // kind, key, holder -> nothing: holds, by node
	bucketChildren  = []byte("children")  // parent, child -> nothing: snapshots, by parent
	bucketVerified  = []byte("verified")  // blob digest -> diff ID that it was seen to have
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
	// NoSync leaves commits to the page cache. For tests and throw-away roots only: a power cut may lose the file.
	NoSync bool
}

// DB is the open database.
type DB struct {
	bolt *bolt.DB
	soon soon
}

// Open opens the database at path, creates it when there is none, and migrates it when it is older. It returns
// errdefs.ErrUnavailable while another process has it open, errdefs.ErrFailedPrecondition when a newer Tank wrote it,
// and errdefs.ErrDataLoss when it can't be read.
func Open(path string, opts *Options) (*DB, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Timeout == 0 {
		o.Timeout = 100 * time.Millisecond
	}
	if err := create(path); err != nil {
		return nil, fmt.Errorf("metadata %s: %w", path, err)
	}
	b, err := openFile(path, o)
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", path, err)
	}
	db := &DB{bolt: b}
	if err := db.migrate(); err != nil {
		b.Close()
		return nil, fmt.Errorf("metadata %s: %w", path, err)
	}
	return db, nil
}

func openFile(path string, o Options) (b *bolt.DB, err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	b, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: o.Timeout, FreelistType: bolt.FreelistMapType, NoSync: o.NoSync})
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, boltErrors.ErrTimeout):
		return nil, fmt.Errorf("open in another process: %w", errdefs.ErrUnavailable)
	case errors.Is(err, boltErrors.ErrInvalid), errors.Is(err, boltErrors.ErrChecksum), errors.Is(err, boltErrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	return nil, err
}

// create makes the file under another name first: bbolt can't open a file whose first pages a power cut lost.
func create(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := bolt.Open(tmp, 0o600, nil)
	if err != nil {
		return err
	}
	err = (&DB{bolt: b}).migrate()
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// migrate brings the file to this schema: so far only from nothing. A file that has it is not written: an Open waits for no disk.
func (db *DB) migrate() (err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	current := false
	if err := db.bolt.View(func(tx *bolt.Tx) (err error) {
		current, err = isCurrent(tx)
		return err
	}); err != nil || current {
		return err
	}
	return db.bolt.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keySchema, []byte(strconv.Itoa(schema)))
	})
}

// isCurrent says whether the file has this schema and all its buckets, and refuses one of a newer schema.
func isCurrent(tx *bolt.Tx) (bool, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return false, nil
	}
	v := meta.Get(keySchema)
	if v == nil {
		return false, nil
	}
	if n, err := strconv.Atoi(string(v)); err != nil || n > schema {
		return false, fmt.Errorf("schema %q is newer than %d, written by a newer Tank: %w", v, schema, errdefs.ErrFailedPrecondition)
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return false, nil
		}
	}
	return string(v) == strconv.Itoa(schema), nil
}

// Close closes the file. It waits for open transactions, and makes durable what UpdateSoon was given.
func (db *DB) Close() error {
	db.settle(nil)
	return db.bolt.Close()
}

// Probe returns when a reader and a writer had their turn. It writes nothing.
func (db *DB) Probe() (err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	for _, write := range []bool{false, true} {
		tx, err := db.bolt.Begin(write)
		if err != nil {
			return fmt.Errorf("metadata: probe: %w", err)
		}
		if err := tx.Rollback(); err != nil {
			return fmt.Errorf("metadata: probe: %w", err)
		}
	}
	return nil
}

// guard turns what bbolt does about a damaged file, which is to panic or to read where nothing is mapped, into an error of
// class errdefs.ErrDataLoss. It is deferred, with the value that debug.SetPanicOnFault had.
func guard(old bool, err *error) {
	debug.SetPanicOnFault(old)
	if p := recover(); p != nil {
		*err = fmt.Errorf("metadata: damaged: %v: %w", p, errdefs.ErrDataLoss)
	}
}

// View runs fn in a read transaction. fn must not call anybody else's code; see the package comment.
func (db *DB) View(fn func(*Tx) error) (err error) {
	db.settle(nil)
	return db.ViewDurable(fn)
}

// ViewDurable is View of what is on the disk, without what UpdateSoon still gathers: for who deletes bytes in the background,
// and would have a batch end early by looking.
func (db *DB) ViewDurable(fn func(*Tx) error) (err error) {
	defer guard(debug.SetPanicOnFault(true), &err)
	return db.bolt.View(func(tx *bolt.Tx) error { return fn(&Tx{bolt: tx}) })
}

// apply runs fn in a write transaction and holds the invariant.
func apply(btx *bolt.Tx, fn func(*Tx) error) error {
	tx := &Tx{bolt: btx, touched: map[Node]bool{}}
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
