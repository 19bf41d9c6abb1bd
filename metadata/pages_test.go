package metadata

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/metadata/internal/boltfile"
)

// grown makes a database whose trees have branches, pages with overflow, inline buckets and free pages.
func grown(t testing.TB, records int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metadata.db")
	db, err := Open(path, &Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		if err := db.Update(func(tx *Tx) error {
			for i := range records {
				d := digest.FromString(fmt.Sprint(round, i))
				if err := tx.PutBlob(
					Blob{Digest: d, Size: int64(i),
						Labels: map[string]string{"l": strings.Repeat("x", i%97)}}); err != nil {
					return err
				}
				if err := tx.Hold(Containerd, BlobNode(d)); err != nil {
					return err
				}
			}
			if round > 0 {
				for i := range records / 2 {
					if err := tx.Release(Containerd,
						BlobNode(digest.FromString(fmt.Sprint(round-1, 2*i)))); err != nil {
						return err
					}
				}
			}
			return tx.SetFlag("long", strings.Repeat("y", 20_000*round))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func verifyPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return verify(f)
}

// TestPagesLikeBbolt compares the check of pages with bbolt's own on files with random changes: bbolt's check finds no
// fault in a file that passes, and no file ends the process.
func TestPagesLikeBbolt(t *testing.T) {
	t.Parallel()
	path := grown(t, 150)
	if err := verifyPath(path); err != nil {
		t.Fatalf("an intact file: %v", err)
	}
	intact, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pageSize, refused := os.Getpagesize(), 0
	for n := range 150 {
		b := bytes.Clone(intact)
		at := rnd.IntN(len(b)/pageSize) * pageSize
		switch n % 5 {
		case 0: // a page's header
			b[at+rnd.IntN(boltfile.PageHeader)] = byte(rnd.Uint32())
		case 1: // its elements
			b[at+boltfile.PageHeader+rnd.IntN(20*boltfile.ElementSize)] = byte(rnd.Uint32())
		case 2:
			copy(b[at:at+pageSize], make([]byte, pageSize))
		case 3: // as a sector that another file's bytes got into
			for i := range 512 {
				b[at+i] = byte(rnd.Uint32())
			}
		case 4:
			copy(b[at:at+pageSize], b[rnd.IntN(len(b)/pageSize)*pageSize:])
		}
		damaged := filepath.Join(t.TempDir(), "metadata.db")
		if err := os.WriteFile(damaged, b, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(damaged, &Options{NoSync: true})
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("change %d: %v", n, err)
			}
			refused++
			continue
		}
		var faults []error
		if err := db.Check(func(f Fault) { faults = append(faults, f) }); err != nil {
			t.Errorf("change %d: check: %v", n, err)
		}
		if len(faults) == 0 {
			if err := db.bolt.View(func(tx *bolt.Tx) error {
				for err := range tx.Check() {
					t.Errorf("change %d at page %d: only bbolt reports: %v", n, at/pageSize, err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Errorf("change %d: close: %v", n, err)
		}
	}
	if refused < 25 {
		t.Errorf("only %d of 150 changed files were refused", refused)
	}
}

// TestOpenRefuses lists what can be at the path of a database. Open neither changes it nor takes it for a new database.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	write := func(content string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(content), 0o600) }
	}
	otherBolt := func(path string) error {
		b, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			return err
		}
		return b.Close()
	}
	without := func(bucket []byte) func(string) error {
		return func(path string) error {
			if err := create(fsys.OS, path); err != nil {
				return err
			}
			b, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			defer b.Close()
			return b.Update(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucket) })
		}
	}
	for _, row := range []struct {
		name string
		make func(string) error
	}{
		{"empty", write("")},
		{"text", write("no database\n")},
		{"zeros", write(strings.Repeat("\x00", 1<<16))},
		{"cut within the second page", func(path string) error {
			if err := create(fsys.OS, path); err != nil {
				return err
			}
			return os.Truncate(path, int64(os.Getpagesize())+900)
		}},
		{"another program's bbolt file", otherBolt},
		{"without snapshots", without(bucketSnapshots)},
		{"without meta", without(bucketMeta)},
		{"symlink to nothing", func(path string) error { return os.Symlink(path+".elsewhere", path) }},
		{"symlink to a database", func(path string) error {
			if err := create(fsys.OS, path+".elsewhere"); err != nil {
				return err
			}
			return os.Symlink(path+".elsewhere", path)
		}},
		{"fifo", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"1 TB", func(path string) error {
			if err := create(fsys.OS, path); err != nil {
				return err
			}
			return os.Truncate(path, 1<<40)
		}},
	} {
		for _, o := range []Options{{}, {Existing: true}, {ReadOnly: true}} {
			path := filepath.Join(t.TempDir(), "metadata.db")
			if err := row.make(path); err != nil {
				t.Fatal(err)
			}
			before := lstat(t, path)
			db, err := Open(path, &o)
			if err == nil {
				db.Close()
			}
			if !errdefs.IsDataLoss(err) && row.name != "directory" || err == nil {
				t.Errorf("%s, %+v: %v", row.name, o, err)
			}
			if after := lstat(t, path); after != before {
				t.Errorf("%s, %+v: changed", row.name, o)
			}
			if _, err := os.Lstat(path + ".elsewhere"); err == nil && row.name == "symlink to nothing" {
				t.Errorf("%s: a file was made elsewhere", row.name)
			}
		}
	}
	for _, o := range []Options{{Existing: true}, {ReadOnly: true}} {
		path := filepath.Join(t.TempDir(), "metadata.db")
		if _, err := Open(path, &o); !errdefs.IsDataLoss(err) {
			t.Errorf("missing, %+v: %v", o, err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("missing, %+v: created", o)
		}
	}
}

func lstat(t *testing.T, path string) string {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(fi.Mode(), fi.Size(), fi.ModTime())
}

// TestReadOnly reads a file that is not writable, and expects an attempt to write to fail with its own class.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	path := grown(t, 10)
	db, err := Open(path, &Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(func(tx *Tx) error {
		if len(tx.Keys(KindBlob, "", -1)) == 0 {
			t.Error("no blobs")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := db.Check(func(f Fault) { t.Error(f) }); err != nil {
		t.Error(err)
	}
	if err := db.Probe(); err != nil {
		t.Error(err)
	}
	if err := db.Update(func(tx *Tx) error { return tx.SetFlag("a", "b") }); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("update: %v", err)
	}
}

// BenchmarkOpen measures the check of the pages, with which Open begins.
func BenchmarkOpen(b *testing.B) {
	for _, records := range []int{100, 10_000} {
		path := grown(b, records)
		fi, _ := os.Stat(path)
		b.Run(fmt.Sprintf("%dKB", fi.Size()>>10), func(b *testing.B) {
			for b.Loop() {
				db, err := Open(path, nil)
				if err != nil {
					b.Fatal(err)
				}
				db.Close()
			}
		})
		b.Run(fmt.Sprintf("%dKB/verify", fi.Size()>>10), func(b *testing.B) {
			for b.Loop() {
				if err := verifyPath(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
