package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// fault is one kind of damage, done to a root while Tank is stopped.
type fault struct {
	name   string
	daemon bool // needs layers, which only a daemon's root keeps
	damage func(t *testing.T, root string, img Image)
}

var faults = []fault{
	{"byte of a blob", false,
		func(t *testing.T, root string, img Image) { flipByte(t, blobFile(root, img.Layers[0].Digest)) }},
	{"byte of a layer's file", true,
		func(t *testing.T, root string, _ Image) { flipByte(t, someFile(t, root, "layers")) }},
	{"byte of a rootfs file", false,
		func(t *testing.T, root string, _ Image) { flipByte(t, someFile(t, root, "rootfs")) }},
	{"missing blob", false,
		func(t *testing.T, root string, img Image) { remove(t, blobFile(root, img.Layers[0].Digest)) }},
	{"missing file of a layer", true,
		func(t *testing.T, root string, _ Image) { remove(t, someFile(t, root, "layers")) }},
	{"missing file of a rootfs", false,
		func(t *testing.T, root string, _ Image) { remove(t, someFile(t, root, "rootfs")) }},
	{"added file in a rootfs", false,
		func(t *testing.T, root string, _ Image) { add(t, someFile(t, root, "rootfs")+".more") }},
	{"lost record of a blob", false, func(t *testing.T, root string, _ Image) { loseRecord(t, root, "blobs") }},
	{"lost record of a layer", true, func(t *testing.T, root string, _ Image) { loseRecord(t, root, "layers") }},
	{"lost record of a rootfs", false, func(t *testing.T, root string, _ Image) { loseRecord(t, root, "rootfs") }},
}

// TestCheck: check exits 0 on an intact root and 6 on each fault, in a private root and in a daemon's.
func TestCheck(t *testing.T) {
	t.Run("own", func(t *testing.T) { checkFaults(t, OwnFixture(t), faults) })
	t.Run("debian-python", func(t *testing.T) { checkFaults(t, DebianFixture(t), faults[:3]) })
}

func checkFaults(t *testing.T, f Fixture, faults []fault) {
	e := New(t)
	r := e.NewRegistry()
	r.Push(f.Layout, f.Ref, f.Name)
	for _, daemon := range []bool{false, true} {
		kind := "private"
		k := e.NewTank()
		if daemon {
			kind = "daemon"
			k.Serve()
		}
		k.Pull(r.Ref(f.Name))
		if daemon {
			k.Daemon().Stop()
		}
		k.MustRun("check")
		for _, x := range faults {
			if x.daemon && !daemon {
				continue
			}
			t.Run(kind+"/"+x.name, func(t *testing.T) {
				e.Use(t)
				damaged := e.NewTank()
				damaged.broken = true
				e.MustRun("cp", "-a", k.Root, damaged.Root)
				x.damage(t, damaged.Root, f.Image)
				if res := damaged.Run("check"); res.Code != 6 {
					t.Errorf("want exit 6: %s", res)
				}
				if err := os.RemoveAll(damaged.Root); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// someFile returns a file with content below root/sub that belongs to an image: in the fs/ of a layer or in a rootfs.
func someFile(t *testing.T, root, sub string) string {
	t.Helper()
	found := ""
	for _, pattern := range []string{"[^.]*/fs", "sha256/[^.]*"} {
		dirs, _ := filepath.Glob(filepath.Join(root, sub, pattern))
		for _, d := range dirs {
			if st, err := os.Stat(d); err != nil || !st.IsDir() {
				continue
			}
			err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() {
					return err
				}
				if info, err := e.Info(); err == nil && info.Size() > 0 {
					found = p
					return fs.SkipAll
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if found != "" {
				return found
			}
		}
	}
	t.Fatalf("no file of an image below %s/%s", root, sub)
	return ""
}

// flipByte changes one bit in the middle and restores the file's times, so that only the content differs.
func flipByte(t *testing.T, name string) {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	setTime(t, name, st.ModTime())
}

// remove removes a file and restores the time of its directory.
func remove(t *testing.T, name string) {
	t.Helper()
	keepDirTime(t, name, func() error { return os.Remove(name) })
}

// add makes a file and restores the time of its directory.
func add(t *testing.T, name string) {
	t.Helper()
	keepDirTime(t, name, func() error { return os.WriteFile(name, []byte("more\n"), 0o644) })
}

func keepDirTime(t *testing.T, name string, change func() error) {
	t.Helper()
	st, err := os.Stat(filepath.Dir(name))
	if err == nil {
		err = change()
	}
	if err != nil {
		t.Fatal(err)
	}
	setTime(t, filepath.Dir(name), st.ModTime())
}

func setTime(t *testing.T, name string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

// loseRecord deletes the first record of a bucket of metadata.db.
func loseRecord(t *testing.T, root, bucket string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &bolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			t.Fatalf("metadata.db has no bucket %q", bucket)
		}
		key, _ := b.Cursor().First()
		if key == nil {
			t.Fatalf("bucket %q is empty", bucket)
		}
		return b.Delete(key)
	})
	if err != nil {
		t.Fatal(err)
	}
}
