package metadata_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

func blobOf(i int) digest.Digest { return digest.FromString(fmt.Sprint("blob ", i)) }

func putBlobs(t *testing.T, db *metadata.DB, n int) {
	t.Helper()
	if err := db.Update(func(tx *metadata.Tx) error {
		for i := range n {
			if err := putBlob(tx, blobOf(i), metadata.Containerd); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func release(i int) func(*metadata.Tx) error {
	return func(tx *metadata.Tx) error { return tx.Release(metadata.Containerd, metadata.BlobNode(blobOf(i))) }
}

// left lists which of n blobs have a record.
func left(t *testing.T, db *metadata.DB, n int) (found []int) {
	t.Helper()
	if err := db.View(func(tx *metadata.Tx) error {
		for i := range n {
			if _, err := tx.Blob(blobOf(i)); err == nil {
				found = append(found, i)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// A later transaction sees what UpdateDeferred changed, and so does the next opening of the file.
func TestUpdateSoon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	db, err := metadata.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	putBlobs(t, db, 4)
	soon := func(i int) func() error {
		t.Helper()
		wait, err := db.UpdateDeferred(release(i))
		if err != nil {
			t.Fatal(err)
		}
		return wait
	}
	wait := soon(0)
	if err := db.ViewCommitted(func(tx *metadata.Tx) error {
		_, err := tx.Blob(blobOf(0)) // not long after, so that it is not on the disk yet
		return err
	}); err != nil {
		t.Errorf("bytes would be deleted before the record is: %v", err)
	}
	if got := left(t, db, 4); len(got) != 3 {
		t.Errorf("a reader sees %v", got)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	soon(1)
	if err := db.Update(release(1)); !errdefs.IsNotFound(err) {
		t.Errorf("a writer does not see that 1 was released: %v", err)
	}
	wait = soon(2)
	if err := wait(); err != nil { // no other transaction begins
		t.Error(err)
	}
	if err := db.ViewCommitted(func(tx *metadata.Tx) error {
		_, err := tx.Blob(blobOf(2))
		return err
	}); !errdefs.IsNotFound(err) {
		t.Errorf("waited for, and not durable: %v", err)
	}
	soon(3)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = metadata.Open(path, nil); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if got := left(t, db, 4); len(got) != 0 {
		t.Errorf("after opening again: %v", got)
	}
}

// A change that fails has no effect, and the others of its batch keep theirs.
func TestUpdateSoonFails(t *testing.T) {
	db := open(t)
	putBlobs(t, db, 4)
	broken := errors.New("no")
	for name, fn := range map[string]func(*metadata.Tx) error{
		"error": func(tx *metadata.Tx) error { return errors.Join(release(3)(tx), broken) },
		"panic": func(tx *metadata.Tx) error {
			_ = release(3)(tx)
			panic("no")
		},
		"record without a holder": func(tx *metadata.Tx) error { return putBlob(tx, blobA) },
	} {
		if _, err := db.UpdateDeferred(fn); err == nil {
			t.Errorf("%s, alone: no error", name)
		}
	}
	first, err := db.UpdateDeferred(release(0))
	if err != nil {
		t.Fatal(err)
	}
	fails := func(tx *metadata.Tx) error { return errors.Join(release(3)(tx), broken) }
	if _, err := db.UpdateDeferred(fails); !errors.Is(err, broken) {
		t.Errorf("the failing one: %v", err)
	}
	second, err := db.UpdateDeferred(release(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first(), second()); err != nil {
		t.Error(err)
	}
	if got := left(t, db, 4); fmt.Sprint(got) != "[2 3]" {
		t.Errorf("left: %v", got)
	}
}

// Hundreds of releases, one after another, wait for the disk only a few times.
func TestUpdateSoonIsQuick(t *testing.T) {
	const n = 500
	db := open(t)
	putBlobs(t, db, n+1)
	begin := time.Now()
	if err := db.Update(release(n)); err != nil {
		t.Fatal(err)
	}
	one := time.Since(begin)
	begin = time.Now()
	for i := range n {
		if _, err := db.UpdateDeferred(release(i)); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(begin)
	t.Logf("%d releases took %v, one that waits %v", n, took, one)
	if took > 20*one+2*time.Second {
		t.Errorf("%d releases took %v, one that waits %v", n, took, one)
	}
	if got := left(t, db, n+1); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// Readers and writers of all kinds run at once, for the race detector.
func TestUpdateSoonBesideOthers(t *testing.T) {
	const n = 90
	db := open(t)
	putBlobs(t, db, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var wait func() error
			var err error
			switch i % 3 {
			case 0:
				err = db.Update(release(i))
			case 1:
				wait, err = db.UpdateDeferred(release(i))
			default:
				wait, err = db.UpdateDeferred(func(*metadata.Tx) error { return errdefs.ErrAborted })
				if errdefs.IsAborted(err) {
					wait, err = db.UpdateDeferred(release(i))
				}
			}
			if err == nil && wait != nil {
				err = wait()
			}
			if err != nil {
				t.Errorf("%d: %v", i, err)
			}
			if err := db.View(func(tx *metadata.Tx) error {
				if _, err := tx.Blob(blobOf(i)); !errdefs.IsNotFound(err) {
					return fmt.Errorf("is still there: %w", err)
				}
				return nil
			}); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
}
