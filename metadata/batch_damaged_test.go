package metadata_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// A batch whose commit meets a damaged page ends with an error. Its changes are undone, and later writers succeed.
func TestUpdateSoonDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	db, err := metadata.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	key := func(i int) string { return fmt.Sprintf("flag-%04d", i) }
	if err := db.Update(func(tx *metadata.Tx) error {
		for i := range 1000 {
			if err := tx.SetFlag(key(i), "value"); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The first page of flags becomes so empty that the commit reads its neighbour.
	wait, err := db.UpdateDeferred(func(tx *metadata.Tx) error {
		for i := range 50 {
			if err := tx.SetFlag(key(i), ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	damage(t, path, key(100))
	if err := wait(); !errdefs.IsDataLoss(err) {
		t.Fatalf("committed to a damaged file: %v", err)
	}
	if err := db.View(func(tx *metadata.Tx) error {
		if tx.Flag(key(0)) == "" {
			t.Error("a change that was not committed is visible")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- db.Update(func(tx *metadata.Tx) error { return tx.SetFlag("a", "b") }) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no writer gets its turn any more")
	}
}

// damage changes the headers of the pages that contain text.
func damage(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	for at := int64(0); ; at += int64(len(page)) {
		if _, err := f.ReadAt(page, at); err != nil {
			break
		}
		if bytes.Contains(page, []byte(text)) {
			if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, 1<<40), at); err != nil {
				t.Fatal(err)
			}
		}
	}
}
