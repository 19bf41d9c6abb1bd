package metadata_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

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

// TestErrorsAreOfDurableRecords: when a call fails because a record exists or is missing, every reader agrees, although
// the call failed in a batch whose changes were not durable yet.
func TestErrorsAreOfDurableRecords(t *testing.T) {
	const n = 24
	db := open(t)
	exists := func() bool {
		return db.View(func(tx *metadata.Tx) error {
			_, err := tx.Blob(blobA)
			return err
		}) == nil
	}
	besideWriter(t, db, n, func(int) {
		err := db.Batch(func(tx *metadata.Tx) error {
			if _, err := tx.Blob(blobA); err == nil {
				return errdefs.ErrAlreadyExists
			}
			return errors.Join(putBlob(tx, blobA), tx.Hold(metadata.Containerd, metadata.BlobNode(blobA)))
		})
		if err != nil && !errdefs.IsAlreadyExists(err) || !exists() {
			t.Errorf("%v, and the record exists: %t", err, exists())
		}
	})
	drop := func(tx *metadata.Tx) error {
		if _, err := tx.Blob(blobA); err != nil {
			return err
		}
		return tx.Release(metadata.Containerd, metadata.BlobNode(blobA))
	}
	besideWriter(t, db, n, func(i int) {
		err := db.Batch(drop)
		if i%2 == 0 {
			_, err = db.UpdateDeferred(drop)
		}
		if err != nil && !errdefs.IsNotFound(err) || exists() {
			t.Errorf("%v, and the record exists: %t", err, exists())
		}
	})
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

// TestViewPendingDuringCommit: while a commit hangs, readers see what is durable without what was released since, and
// do not wait.
func TestViewPendingDuringCommit(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var hang atomic.Bool
	db, err := metadata.Open(filepath.Join(t.TempDir(), "db"), &metadata.Options{
		Spend: func(commit func() error) error {
			if hang.CompareAndSwap(true, false) {
				close(entered)
				<-leave
			}
			return commit()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const holder, other = metadata.Containerd, metadata.Holder("image/x")
	kept, released, added := digest.FromString("kept"), digest.FromString("released"), digest.FromString("added")
	put := func(d digest.Digest, hs ...metadata.Holder) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error {
			if err := tx.PutBlob(metadata.Blob{Digest: d}); err != nil {
				return err
			}
			for _, h := range hs {
				if err := tx.Hold(h, metadata.BlobNode(d)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(db.Update(put(kept, holder, other)))
	must(db.Update(put(released, holder)))
	release := func(d digest.Digest) func() error {
		wait, err := db.UpdateDeferred(func(tx *metadata.Tx) error { return tx.Release(holder, metadata.BlobNode(d)) })
		must(err)
		return wait
	}
	hang.Store(true)
	first, second := release(kept), release(released)
	committing := make(chan error, 1)
	go func() { committing <- db.Batch(put(added, holder)) }()
	<-entered
	seen := func(when string, want ...digest.Digest) {
		t.Helper()
		must(db.ViewPending(func(tx *metadata.Tx) error {
			var held []string
			for _, d := range want {
				held = append(held, d.String())
			}
			if got := tx.Held(holder, metadata.KindBlob, "", -1); !slices.Equal(got, held) {
				t.Errorf("%s: holds %q instead of %q", when, got, held)
			}
			if _, err := tx.Blob(kept); err != nil {
				t.Errorf("%s: the blob of another holder: %v", when, err)
			}
			if _, err := tx.Blob(released); !errdefs.IsNotFound(err) {
				t.Errorf("%s: the released blob: %v", when, err)
			}
			if tx.Holds(holder, metadata.BlobNode(kept)) || !tx.Holds(other, metadata.BlobNode(kept)) {
				t.Errorf("%s: held by %q", when, tx.Holders(metadata.BlobNode(kept)))
			}
			return nil
		}))
	}
	seen("while the commit hangs")
	close(leave)
	must(<-committing)
	must(first())
	must(second())
	seen("afterwards", added)
	must(db.Update(put(released, holder)))
	must(db.ViewPending(func(tx *metadata.Tx) error {
		if _, err := tx.Blob(released); err != nil {
			t.Errorf("recorded again: %v", err)
		}
		return nil
	}))
}

// TestViewPendingIsOneState: a reader that began before a release sees none of it.
func TestViewPendingIsOneState(t *testing.T) {
	db := open(t)
	d, before := digest.FromString("blob"), digest.FromString("released before")
	for _, d := range []digest.Digest{d, before} {
		if err := db.Update(func(tx *metadata.Tx) error {
			if err := tx.PutBlob(metadata.Blob{Digest: d}); err != nil {
				return err
			}
			return tx.Hold(metadata.Containerd, metadata.BlobNode(d))
		}); err != nil {
			t.Fatal(err)
		}
	}
	release := func(d digest.Digest, fail bool) error {
		_, err := db.UpdateDeferred(func(tx *metadata.Tx) error {
			if fail {
				return errdefs.ErrAborted
			}
			return tx.Release(metadata.Containerd, metadata.BlobNode(d))
		})
		return err
	}
	if err := release(before, false); err != nil {
		t.Fatal(err)
	}
	if err := release(d, true); !errdefs.IsAborted(err) {
		t.Fatal(err)
	}
	if err := db.ViewPending(func(tx *metadata.Tx) error {
		if err := release(d, false); err != nil {
			return err
		}
		if _, err := tx.Blob(d); err != nil || !tx.Holds(metadata.Containerd, metadata.BlobNode(d)) {
			t.Errorf("the state changed meanwhile: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
