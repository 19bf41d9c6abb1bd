// Package copies keeps copies of the records of images and bindings in files of their own, from which a rebuild
// takes them if the database is lost.
//
// On disk it owns the files images.records and bindings.records of a root. Each has a first line with the version,
// one line for each record (the CRC-32C of the record, the record as the database has it), and a last line with the
// number of records.
//
// Its invariant: a file is replaced as a whole, and has reached the disk before it takes the place of the former
// one. A damaged record of the database replaces no copy. The surprising rule: the database is the truth. A file may be
// older, if a process was killed between the transaction and the file; the next opening of the root compares it with
// the database and replaces it.
package copies

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/metadata"
)

// The names of the files in a root.
const (
	Images   = "images.records"
	Bindings = "bindings.records"
)

// Copies are the copies of one root. Its methods may be called by several goroutines at once.
type Copies struct {
	db               *metadata.DB
	images, bindings *file
}

// New returns the copies of the records in db, which lie in the directory root. It does not look at the disk. A nil fs
// is fsys.OS.
func New(root string, db *metadata.DB, fs fsys.FS) *Copies {
	return &Copies{db: db, images: newFile(root, Images, fs), bindings: newFile(root, Bindings, fs)}
}

// UpdateImages writes the copy of the images' records and syncs it, if it differs from the database.
func (c *Copies) UpdateImages() error {
	return c.images.update(c.records(metadata.ImageRecords), new(metadata.Salvaged).AddImage)
}

// UpdateBindings writes the copy of the bindings and syncs it, if it differs from the database.
func (c *Copies) UpdateBindings() error {
	return c.bindings.update(c.records(metadata.BindingRecords),
		(&metadata.Salvaged{Facts: map[string][]byte{}}).AddBinding)
}

// KeepBindings is like UpdateBindings, but only logs an error: the next change of a binding, or the next opening of the
// root, writes the copy.
func (c *Copies) KeepBindings() {
	if err := c.UpdateBindings(); err != nil {
		log.L.WithError(err).Warn("the copy of the containerds' bindings could not be written")
	}
}

func (c *Copies) records(of func(*metadata.Tx) [][]byte) func() ([][]byte, error) {
	return func() (all [][]byte, err error) {
		err = c.db.View(func(tx *metadata.Tx) error {
			all = of(tx)
			return nil
		})
		return all, err
	}
}

// Check reports damaged and missing copies. It does not compare them with the database, which may just have changed.
func (c *Copies) Check(report func(metadata.Fault)) error {
	for _, of := range []struct {
		copied  *file
		records func() ([][]byte, error)
	}{
		{c.images, c.records(metadata.ImageRecords)}, {c.bindings, c.records(metadata.BindingRecords)},
	} {
		all, err := of.records()
		if err != nil {
			continue // the check of the database reports it
		}
		_, whole, err := of.copied.read()
		if err != nil {
			return err
		}
		if !whole && len(all) > 0 {
			report(metadata.Fault{Damage: metadata.DamagedRecords, Mend: metadata.MendRecord, Err: fmt.Errorf(
				"file %s: missing or damaged; the next opening of the root writes it again: %w", of.copied.name(),
				errdefs.ErrDataLoss)})
		}
	}
	return nil
}

// Read returns the records that can be read from the copy of this name. whole is true if these are all. A missing file
// has no records and is not whole. Read returns errdefs.ErrFailedPrecondition for a file of a newer version.
func Read(root, name string) (records [][]byte, whole bool, err error) {
	return newFile(root, name, nil).read()
}

// Empty reports whether the copies of a root have no records.
func Empty(root string) (bool, error) {
	for _, name := range []string{Images, Bindings} {
		if records, _, err := Read(root, name); err != nil || len(records) > 0 {
			return false, err
		}
	}
	return true, nil
}
