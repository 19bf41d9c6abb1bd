package metadata_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

func commits(t *testing.T, db *metadata.DB) int {
	t.Helper()
	n, err := db.Commits()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// besideWriter makes n concurrent calls of fn while another writer runs, so that all of them wait for it.
func besideWriter(t *testing.T, db *metadata.DB, n int, fn func(i int)) {
	t.Helper()
	var wg sync.WaitGroup
	if err := db.Update(func(*metadata.Tx) error {
		for i := range n {
			wg.Go(func() { fn(i) })
		}
		for end := time.Now().Add(time.Minute); db.Queued() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("%d wait", db.Queued())
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

// TestBatch: calls of Batch that arrive while another writer runs share the next transaction. When a call returns, its
// change is on the disk, and a change that fails has no effect on the others.
func TestBatch(t *testing.T) {
	const n = 40
	broken := errors.New("no")
	for name, fail := range map[string]func(tx *metadata.Tx, i int) error{
		"none fails": nil,
		"error":      func(tx *metadata.Tx, i int) error { return errors.Join(release(i)(tx), broken) },
		"panic": func(tx *metadata.Tx, i int) error {
			_ = release(i)(tx)
			panic("no")
		},
		"without a holder": func(tx *metadata.Tx, _ int) error { return putBlob(tx, blobA) },
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			putBlobs(t, db, n)
			before := commits(t, db)
			besideWriter(t, db, n, func(i int) {
				bad := fail != nil && i%8 == 0
				err := db.Batch(func(tx *metadata.Tx) error {
					if bad {
						return fail(tx, i)
					}
					return release(i)(tx)
				})
				if bad != (err != nil) {
					t.Errorf("%d: %v", i, err)
				}
				if verr := db.ViewCommitted(func(tx *metadata.Tx) error {
					_, err := tx.Blob(blobOf(i))
					return err
				}); bad == errdefs.IsNotFound(verr) {
					t.Errorf("%d: Batch returned %v, but ViewCommitted returned %v", i, err, verr)
				}
			})
			if got := commits(t, db) - before; got != 2 { // the writer's, and theirs
				t.Errorf("%d transactions", got)
			}
			want := 0
			if fail != nil {
				want = n / 8
			}
			if got := left(t, db, n); len(got) != want {
				t.Errorf("left: %v", got)
			}
		})
	}
}

// TestBatchBesideUpdate: an Update commits the changes of waiting callers together with its own, and does not run
// again.
func TestBatchBesideUpdate(t *testing.T) {
	const n = 12
	db := open(t)
	putBlobs(t, db, n)
	var runs [n]int
	besideWriter(t, db, n, func(i int) {
		var err error
		switch i % 3 {
		case 0:
			err = db.Update(func(tx *metadata.Tx) error { runs[i]++; return release(i)(tx) })
		case 1:
			err = db.Batch(release(i))
		case 2:
			err = db.Update(func(*metadata.Tx) error { runs[i]++; return errdefs.ErrAborted })
			if errdefs.IsAborted(err) {
				err = nil
			}
		}
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	})
	for i, r := range runs {
		want := 1
		if i%3 == 1 {
			want = 0 // not counted
		}
		if r != want {
			t.Errorf("%d ran %d times", i, r)
		}
	}
	if got := left(t, db, n); len(got) != n/3 {
		t.Errorf("left: %v", got)
	}
}

// TestViewPending: a deferred release and the writer after it share a transaction, and ViewPending does not wait for
// the disk.
func TestViewPending(t *testing.T) {
	db := open(t)
	putBlobs(t, db, 3)
	before := commits(t, db)
	wait, err := db.UpdateDeferred(release(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.ViewPending(func(tx *metadata.Tx) error {
		_, err := tx.Blob(blobOf(0))
		return err
	}); !errdefs.IsNotFound(err) {
		t.Errorf("ViewPending still sees a released blob: %v", err)
	}
	if got := commits(t, db); got != before {
		t.Errorf("ViewPending committed %d transactions", got-before)
	}
	if err := db.ViewPending(func(*metadata.Tx) error { panic("no") }); !errdefs.IsDataLoss(err) {
		t.Errorf("a panic in ViewPending: %v", err)
	}
	if err := db.Batch(release(1)); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	if got := commits(t, db); got != before+1 {
		t.Errorf("a release and a writer took %d transactions", got-before)
	}
	if got := left(t, db, 3); fmt.Sprint(got) != "[2]" {
		t.Errorf("left: %v", got)
	}
	if err := db.ViewPending(func(tx *metadata.Tx) error {
		_, err := tx.Blob(blobOf(2))
		return err
	}); err != nil {
		t.Errorf("ViewPending without a writer: %v", err)
	}
}

// TestViewPendingIsDurable: a change that a caller of Batch waits for is invisible until it is durable. Otherwise a
// crash could undo what a reader saw.
func TestViewPendingIsDurable(t *testing.T) {
	const n = 30
	db := open(t)
	putBlobs(t, db, n)
	besideWriter(t, db, n, func(i int) {
		if err := db.Batch(release(i)); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		var seen, durable []int
		for _, look := range []struct {
			by   func(func(*metadata.Tx) error) error
			into *[]int
		}{{db.ViewPending, &seen}, {db.ViewCommitted, &durable}} {
			if err := look.by(func(tx *metadata.Tx) error {
				for i := range n {
					if _, err := tx.Blob(blobOf(i)); err != nil {
						*look.into = append(*look.into, i)
					}
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		if len(seen) > len(durable) {
			t.Errorf("ViewPending misses %d blobs, ViewCommitted %d", len(seen), len(durable))
		}
	})
}

// TestReadersBesideWriter: readers do not wait for a running writer.
func TestReadersBesideWriter(t *testing.T) {
	db := open(t)
	putBlobs(t, db, 1)
	if err := db.Update(func(*metadata.Tx) error {
		looks := map[string]func(func(*metadata.Tx) error) error{"View": db.View, "ViewPending": db.ViewPending}
		for name, look := range looks {
			done := make(chan error, 1)
			go func() {
				done <- look(func(tx *metadata.Tx) error {
					_, err := tx.Blob(blobOf(0))
					return err
				})
			}()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			case <-time.After(10 * time.Second):
				return fmt.Errorf("%s waits for a writer", name)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
