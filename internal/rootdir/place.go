package rootdir

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/outcome"
	"github.com/tank-snapshotter/tank/metadata"
)

// Entry is something that is built and has no position yet.
type Entry struct {
	// Kind is what the entry becomes.
	Kind metadata.Kind
	// Name is the name of a blob or a rootfs below its pool: the algorithm of its digest, a slash
	// and the hexadecimal part. Layers and snapshots have none: Place gives them a number.
	Name string
	// Staged is the path of what was built, with a staged name in the pool: a layer or a snapshot,
	// or a directory with the fs and the seal of a rootfs, whose other content stays there. Of a
	// blob it is the data file of an ingest.
	Staged string
	// Durable means that the record will say that the entry is on the disk, because the entry's
	// content is. Place then writes its name to the disk as well. false: the record is provisional,
	// or the entry needs no record that says so.
	Durable bool
	// Copy makes a synced copy of a file at a path. Place calls it if Staged lies on another file
	// system than the pool or has another project quota. nil: such an entry can't be placed.
	Copy func(to string) error
}

// kind has the differences that Place makes between kinds of entries.
type kind struct {
	pool string
	// shared: the record may share a transaction with those of other callers (metadata.DB.Batch).
	shared bool
	// synced has the files and directories right in the entry, and its name, synced.
	synced bool
	// adoptable entries keep their position when they can't be recorded.
	adoptable bool
}

var kinds = map[metadata.Kind]kind{
	// A blob keeps its position: the next download of it adopts the bytes that it finds there, and
	// if the name had a record before, those are the bytes of that record.
	metadata.KindBlob: {pool: Blobs, shared: true, adoptable: true},
	// A layer is provisional. It is compared with its seal at the next opening, unless Sync came
	// before.
	metadata.KindLayer: {pool: Layers},
	// A rootfs that Durable does not mark is provisional as well.
	metadata.KindRootfs: {pool: Rootfs},
	// What a container writes has no seal. So its directories have to be on the disk when its
	// record is. The sync of the database does not write them: bbolt writes to blocks that the
	// file has already, and then ext4 and XFS write no journal.
	metadata.KindSnapshot: {pool: Snapshots, shared: true, synced: true},
}

// Record records an entry that has its position, in a write transaction. name is the last element
// of the entry's path. used false means that the transaction is to be committed although the entry
// is not needed: another one with the same content was quicker. Record may be called again, so it
// changes nothing but tx and what its last call sets.
type Record func(tx *metadata.Tx, name string) (used bool, err error)

// Place gives a built entry its position and then records it. Sweeps are kept away meanwhile. What
// has the name already goes to the trash, except for a blob, which takes the place of a file
// atomically.
//
// If the entry can't be placed or recorded, or record does not use it, it goes to the trash,
// wherever it is then. Only a blob stays where it is, and so does every entry whose record can be read
// although its commit failed (package outcome). An error of record is returned as it is. No
// transaction may be open.
//
// Renaming comes before the transaction, not within it (docs/adr/0036): the transaction keeps every
// other writer waiting and its function may run again.
func (d *Dir) Place(e Entry, record Record) (err error) {
	defer d.KeepSweepsAway()()
	k := kinds[e.Kind]
	var placed []string
	used := false
	defer func() {
		if outcome.Uncertain(err) {
			return // the record may be there, so its bytes have to be
		}
		if !k.adoptable && (err != nil || !used) {
			err = errors.Join(err, d.Trash(append(placed, e.Staged)...))
		}
	}()
	name := e.Name
	if name == "" {
		if name, err = d.newNumber(); err != nil {
			return err
		}
	}
	path := d.Path(k.pool, name)
	if placed, err = d.position(e, path); err != nil {
		return err
	}
	if err = d.syncPlaced(k, path, e.Durable); err != nil {
		return err
	}
	return d.record(k, e.Name == "", func(tx *metadata.Tx) (err error) {
		used, err = record(tx, filepath.Base(path))
		return err
	})
}

// position renames an entry to path. It returns the paths that have a part of it by then, also with
// an error.
func (d *Dir) position(e Entry, path string) (placed []string, err error) {
	from := e.Staged
	switch e.Kind {
	case metadata.KindBlob:
		if fi, err := os.Lstat(path); err == nil && fi.IsDir() { // another program made it
			if err := d.Trash(path); err != nil {
				return nil, err
			}
		}
	case metadata.KindRootfs:
		if err := d.Trash(path, path+sealSuffix); err != nil {
			return nil, err
		}
		if err := d.fs.Rename(filepath.Join(e.Staged, "seal"), path+sealSuffix); err != nil {
			return nil, err
		}
		placed = append(placed, path+sealSuffix)
		from = filepath.Join(e.Staged, "fs")
	}
	err = d.move(from, path)
	if errors.Is(err, unix.EXDEV) && e.Copy != nil {
		err = d.positionCopy(e, path)
	}
	if err == nil {
		placed = append(placed, path)
	}
	return placed, err
}

// sealSuffix ends the name of a rootfs's seal.
const sealSuffix = ".seal"

// positionCopy gives path a copy of an entry of another file system.
func (d *Dir) positionCopy(e Entry, path string) error {
	staged := d.StageBeside(path, "new")
	err := e.Copy(staged)
	if err == nil {
		err = d.fs.Rename(staged, path)
	}
	if err != nil {
		_ = d.fs.Remove(staged) // if this fails, the next sweep removes it
	}
	return err
}

// syncPlaced writes to the disk what has to be there before the record of the entry at path.
func (d *Dir) syncPlaced(k kind, path string, durable bool) error {
	if k.synced {
		return d.syncEntry(k.pool, path)
	}
	if durable {
		return d.fs.SyncDir(filepath.Dir(path))
	}
	return nil
}

// record runs fn in a transaction. If the entry is numbered, the transaction takes the next numbers
// too when few are left.
func (d *Dir) record(k kind, numbered bool, fn func(*metadata.Tx) error) error {
	low, first := numbered && d.numbers.low(), uint64(0)
	change := func(tx *metadata.Tx) (err error) {
		if err = fn(tx); err == nil && low {
			first, err = tx.TakeIDs(numberBlock)
		}
		return err
	}
	var err error
	if k.shared {
		err = d.db.Batch(change)
	} else {
		err = d.db.Update(change)
	}
	if err == nil && low {
		d.numbers.add(first)
	}
	return err
}
