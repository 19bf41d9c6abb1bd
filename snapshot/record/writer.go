package record

import (
	"context"
	"errors"
	"os"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/keylock"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Writer keeps the durable records of an open root in agreement with its database. All methods may be called by
// several goroutines at once.
type Writer struct {
	db    *metadata.DB
	dir   *rootdir.Dir
	fs    fsys.FS
	locks keylock.Locks // by name of the directory: the last line is that of the last change
}

// NewWriter returns the writer of the root of dir and db. fs changes its files.
func NewWriter(db *metadata.DB, dir *rootdir.Dir, fs fsys.FS) *Writer {
	return &Writer{db: db, dir: dir, fs: fs}
}

// Sync says whether a change of a record has to be on the disk.
type Sync bool

const (
	// Now is for a change that is acknowledged to containerd, which keeps it in its own database.
	Now Sync = true
	// Eventually is for a change that is made again if a power cut undoes it and the database is lost, too.
	Eventually Sync = false
)

// Stage makes a directory with a staged name, what fill makes in it, and the record of a new snapshot. Place syncs
// what is right in the directory; fill syncs what is deeper.
func (w *Writer) Stage(r Record, fill func(dir string) error) (path string, err error) {
	path = w.dir.Stage(rootdir.Snapshots, "snapshot")
	err = w.dir.Build(path, func() error {
		if err := fill(path); err != nil {
			return err
		}
		return Create(path, r)
	}, nil)
	if err != nil {
		return "", errors.Join(err, w.dir.Trash(path))
	}
	return path, nil
}

// Note writes the present state of a snapshot to its record. It is called after the database has the change, and
// before the change is acknowledged. The database is the truth: an error is logged, and Mend repairs the record at the
// next opening of the root.
func (w *Writer) Note(ctx context.Context, key string, sync Sync) {
	if err := w.note(key, sync); err != nil {
		log.G(ctx).WithError(err).WithField("snapshot", key).Warn("the durable record could not be written")
	}
}

func (w *Writer) note(key string, sync Sync) error {
	return w.change(key, func(dir string, r Record) error { return Append(w.fs, dir, r, bool(sync)) })
}

// change calls write with the directory of a snapshot and what its record has to say now.
func (w *Writer) change(key string, write func(dir string, r Record) error) error {
	r, err := w.current(key)
	if err != nil || r.Entry() == "" {
		return ignoreNotFound(err) // removed, or made by an older version
	}
	defer w.locks.Lock(r.Entry())()
	if r, err = w.current(key); err != nil {
		return ignoreNotFound(err)
	}
	err = write(w.path(r), r)
	if errors.Is(err, os.ErrNotExist) {
		if _, gone := w.current(key); errdefs.IsNotFound(gone) {
			return nil // removed meanwhile
		}
	}
	return err
}

func (w *Writer) path(r Record) string { return w.dir.Path(rootdir.Snapshots, r.Entry()) }

// current returns what the record of a snapshot has to say.
func (w *Writer) current(key string) (r Record, err error) {
	err = w.db.ViewPending(func(tx *metadata.Tx) error {
		r, err = current(tx, key)
		return err
	})
	return r, err
}

func current(tx *metadata.Tx, key string) (r Record, err error) {
	r.Snapshot, err = tx.Snapshot(key)
	r.Content = r.Dir != ""
	r.Holders = tx.Holders(metadata.SnapshotNode(key))
	return r, err
}

const (
	// mendDelay is how long after the opening the records are compared. A command that only answers from the
	// database has ended by then.
	mendDelay = time.Second
	// mendPage is how many snapshots are read in one transaction.
	mendPage = 100
)

// Mend makes the records agree with the database: those of roots of older versions, which had none, those that an
// older version left behind, and those of which a crash lost the last line. It runs in the background until ctx ends,
// and begins a second later.
func (w *Writer) Mend(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(mendDelay):
	}
	for after := ""; ; {
		var page []Record
		err := w.db.ViewCommitted(func(tx *metadata.Tx) error {
			for _, key := range tx.Keys(metadata.KindSnapshot, after, mendPage) {
				r, err := current(tx, key)
				if err != nil {
					return err
				}
				page = append(page, r)
			}
			return nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].Key
		for _, r := range page {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := w.MendOne(r); err != nil {
				log.G(ctx).WithError(err).WithField("snapshot", r.Key).Warn("the durable record could not be repaired")
			}
		}
	}
}

// MendOne makes the record of one snapshot agree with what the database said about it a moment ago.
func (w *Writer) MendOne(want Record) error {
	if want.Entry() == "" {
		return w.add(want)
	}
	is, err := Read(w.path(want))
	damaged := Check(w.path(want)) != nil
	if err == nil && equal(is, want) && !damaged {
		return nil
	}
	if errdefs.IsFailedPrecondition(err) {
		return err // a newer version wrote it
	}
	if damaged { // one more line would leave the damaged one where it is
		err = w.change(want.Key, func(dir string, r Record) error { return Replace(w.fs, dir, r) })
	} else {
		err = w.note(want.Key, Now)
	}
	if errors.Is(err, os.ErrNotExist) && want.Dir == "" {
		return w.add(want) // an older version has swept the directory, which had only the record
	}
	return err
}

// equal reports whether two records say the same. Times are equal if they are the same moment.
func equal(a, b Record) bool {
	if !a.Created.Equal(b.Created) || !a.Updated.Equal(b.Updated) || len(a.Labels) != len(b.Labels) {
		return false
	}
	a.Created, a.Updated = b.Created, b.Updated
	if len(a.Labels) == 0 {
		a.Labels, b.Labels = nil, nil
	}
	return reflect.DeepEqual(a, b)
}

// add gives a snapshot a directory for its record.
func (w *Writer) add(r Record) error {
	path, err := w.Stage(r, func(string) error { return nil })
	if err != nil {
		return err
	}
	err = w.dir.Place(rootdir.Entry{Kind: metadata.KindSnapshot, Staged: path},
		func(tx *metadata.Tx, dir string) (bool, error) {
			now, err := tx.Snapshot(r.Key)
			if errdefs.IsNotFound(err) || err == nil && now.Entry() != r.Entry() {
				return false, nil // removed meanwhile, or it got one
			}
			now.RecordDir = dir
			return true, errors.Join(err, tx.PutSnapshot(now))
		})
	if err != nil {
		return err
	}
	return w.note(r.Key, Eventually) // it may have changed since it was read
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
