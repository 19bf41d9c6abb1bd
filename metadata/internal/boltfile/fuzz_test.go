package boltfile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/metadata/internal/boltfile"
)

// database returns the bytes of a small database with nested pages.
func database(f *testing.F) []byte {
	path := filepath.Join(f.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: 4096, NoFreelistSync: true})
	if err != nil {
		f.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"a", "b"} {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			for i := range 200 {
				if err := b.Put(bytes.Repeat([]byte{byte(i)}, 20), bytes.Repeat([]byte(name), 30)); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		f.Fatal(err)
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return text
}

// FuzzFile changes bytes of a database. Check and Salvage end in bounded time, and Salvage returns no more entries than
// the file can hold.
func FuzzFile(f *testing.F) {
	whole := database(f)
	f.Add(0, []byte{}, len(whole))
	f.Add(4096*2+8, []byte{0xff, 0xff}, len(whole))
	f.Add(4096*3, bytes.Repeat([]byte{1}, 64), len(whole)-100)
	f.Fuzz(func(t *testing.T, at int, change []byte, size int) {
		text := bytes.Clone(whole)
		if at < 0 || at > len(text) || size < 0 || size > len(text) {
			return
		}
		copy(text[at:], change)
		text = text[:size]
		began := time.Now()
		faults, entries := 0, 0
		report := func(string, ...any) { faults++ }
		want := [][]byte{[]byte("a"), []byte("b")}
		err := boltfile.Check(bytes.NewReader(text), int64(len(text)), false, want, report)
		if bytes.Equal(text, whole) && (err != nil || faults > 0) {
			t.Errorf("the whole database has %d faults: %v", faults, err)
		}
		_ = boltfile.Salvage(bytes.NewReader(text), int64(len(text)), boltfile.Visitor{
			Entry:    func(string, []byte, []byte) { entries++ },
			Sequence: func(string, uint64) {},
		}, report)
		if entries > len(text)/boltfile.ElementSize || time.Since(began) > 10*time.Second {
			t.Errorf("%d entries of %d bytes in %v", entries, len(text), time.Since(began))
		}
	})
}
