package metadata_test

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// TestReleaseSnapshots releases a holder's snapshots, children before parents whatever their names are.
func TestReleaseSnapshots(t *testing.T) {
	db := open(t)
	const holder, other = metadata.Containerd, metadata.Holder("other")
	put := func(key, parent string, hs ...metadata.Holder) func(tx *metadata.Tx) error {
		return func(tx *metadata.Tx) error {
			if err := tx.PutSnapshot(
				metadata.Snapshot{Key: key, Parent: parent, Kind: metadata.Committed}); err != nil {
				return err
			}
			for _, h := range hs {
				if err := tx.Hold(h, metadata.SnapshotNode(key)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for _, do := range []func(*metadata.Tx) error{
		put("b", "", holder, other), put("a", "b", holder), put("d", "a", holder), put("c", "d", holder),
		put("e", "b", other),
	} {
		if err := db.Update(do); err != nil {
			t.Fatal(err)
		}
	}
	release := func(h metadata.Holder) error {
		return db.Update(func(tx *metadata.Tx) error { return tx.ReleaseAll(h) })
	}
	if err := db.View(func(tx *metadata.Tx) error {
		keys, err := tx.HeldSnapshots(holder)
		if !slices.Equal(keys, []string{"c", "d", "a", "b"}) {
			t.Errorf("order %q", keys)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := release(holder); err != nil {
		t.Fatal(err)
	}
	if err := db.View(func(tx *metadata.Tx) error {
		if left := tx.Keys(metadata.KindSnapshot, "", -1); !slices.Equal(left, []string{"b", "e"}) {
			t.Errorf("left: %q", left)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// A parent stays as long as it has a child, whoever holds the child.
	if err := db.Update(put("f", "e", holder)); err != nil {
		t.Fatal(err)
	}
	if err := release(other); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("released below a child: %v", err)
	}
}

// TestProbe: readers are served while a writer hangs.
func TestProbe(t *testing.T) {
	db := open(t)
	if err := db.Probe(); err != nil {
		t.Error(err)
	}
	entered, leave, done := make(chan bool), make(chan bool), make(chan error, 1)
	go func() {
		done <- db.Update(func(*metadata.Tx) error {
			close(entered)
			<-leave
			return nil
		})
	}()
	<-entered
	if err := db.Probe(); err != nil {
		t.Error(err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
