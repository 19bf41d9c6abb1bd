package metadata_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

var (
	blobA = digest.FromString("a")
	diffA = digest.FromString("diff a")
)

func open(t *testing.T) *metadata.DB {
	t.Helper()
	db, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Check(func(f metadata.Fault) { t.Error(f) }); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	return db
}

func putBlob(tx *metadata.Tx, d digest.Digest, hs ...metadata.Holder) error {
	if err := tx.PutBlob(metadata.Blob{Digest: d, Size: 1}); err != nil {
		return err
	}
	for _, h := range hs {
		if err := tx.Hold(h, metadata.BlobNode(d)); err != nil {
			return err
		}
	}
	return nil
}

func TestHolders(t *testing.T) {
	type step struct {
		name string
		do   func(*metadata.Tx) error
		want error
	}
	put := func(hs ...metadata.Holder) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error { return putBlob(tx, blobA, hs...) }
	}
	release := func(h metadata.Holder) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error { return tx.Release(h, metadata.BlobNode(blobA)) }
	}
	hold := func(h metadata.Holder) func(*metadata.Tx) error {
		return func(tx *metadata.Tx) error { return tx.Hold(h, metadata.BlobNode(blobA)) }
	}
	for _, row := range []struct {
		testName string
		steps    []step
		left     bool
	}{
		{"a record needs a holder", []step{{"put", put(), errdefs.ErrFailedPrecondition}}, false},
		{"a hold needs a record", []step{{"hold", hold("containerd"), errdefs.ErrNotFound}}, false},
		{"the last release deletes", []step{
			{"put", put("x", "containerd"), nil}, {"release", release("x"), nil},
			{"release", release("containerd"), nil},
		}, false},
		{"another holder keeps", []step{{"put", put("x", "containerd"), nil}, {"release", release("containerd"), nil}},
			true},
		{"a name with the same beginning is another name", []step{
			{"put", put("containerd2"), nil}, {"release", release("containerd"), errdefs.ErrNotFound},
		}, true},
		{"holding twice is once",
			[]step{{"put", put("x"), nil}, {"hold", hold("x"), nil}, {"release", release("x"), nil}}, false},
		{"a holder's name has no NUL", []step{{"put", put("x\x00y"), errdefs.ErrInvalidArgument}}, false},
	} {
		t.Run(row.testName, func(t *testing.T) {
			db := open(t)
			for _, s := range row.steps {
				if err := db.Update(s.do); !errors.Is(err, s.want) {
					t.Fatalf("%s: %v, want %v", s.name, err, s.want)
				}
			}
			err := db.View(func(tx *metadata.Tx) error { _, err := tx.Blob(blobA); return err })
			if row.left != (err == nil) {
				t.Errorf("record left: %v", err)
			}
		})
	}
}

func TestVerifiedPairLivesAsLongAsBlobOrLayer(t *testing.T) {
	db := open(t)
	layer := metadata.LayerNode(metadata.LayerKey(diffA))
	steps := []struct {
		do   func(*metadata.Tx) error
		want digest.Digest
	}{
		{func(tx *metadata.Tx) error {
			if err := putBlob(tx, blobA, "x"); err != nil {
				return err
			}
			if err := tx.PutLayer(metadata.Layer{Key: layer.Key, DiffID: diffA}); err != nil {
				return err
			}
			return errors.Join(tx.Hold("x", layer), tx.SetVerified(blobA, diffA))
		}, diffA},
		{func(tx *metadata.Tx) error { return tx.Release("x", metadata.BlobNode(blobA)) }, diffA},
		{func(tx *metadata.Tx) error { return putBlob(tx, blobA, "x") }, diffA},
		{func(tx *metadata.Tx) error { return tx.Release("x", layer) }, diffA},
		{func(tx *metadata.Tx) error { return tx.Release("x", metadata.BlobNode(blobA)) }, ""},
	}
	for i, s := range steps {
		if err := db.Update(s.do); err != nil {
			t.Fatal(i, err)
		}
		db.View(func(tx *metadata.Tx) error {
			if got := tx.Verified(blobA); got != s.want {
				t.Errorf("step %d: verified %q, want %q", i, got, s.want)
			}
			return nil
		})
	}
}

func TestSnapshots(t *testing.T) {
	db := open(t)
	put := func(tx *metadata.Tx, s metadata.Snapshot) error {
		if err := tx.PutSnapshot(s); err != nil {
			return err
		}
		return tx.Hold(metadata.Containerd, metadata.SnapshotNode(s.Key))
	}
	layer := metadata.Layer{Key: metadata.LayerKey(diffA), DiffID: diffA}
	must(t, db.Update(func(tx *metadata.Tx) error {
		if err := put(tx, metadata.Snapshot{Key: "base", Kind: metadata.Active, Layer: layer.Key}); err != nil {
			return err
		}
		if err := tx.PutLayer(layer); err != nil {
			return err
		}
		return tx.Hold(metadata.SnapshotHolder("base"), metadata.LayerNode(layer.Key))
	}))
	if err := db.Update(func(tx *metadata.Tx) error {
		return put(tx, metadata.Snapshot{Key: "orphan", Parent: "none"})
	}); !errdefs.IsNotFound(err) {
		t.Errorf("missing parent: %v", err)
	}
	must(t, db.Update(func(tx *metadata.Tx) error {
		return tx.RenameSnapshot("base", metadata.Snapshot{Key: "name", Kind: metadata.Committed, Layer: layer.Key})
	}))
	must(t, db.Update(func(tx *metadata.Tx) error { return put(tx, metadata.Snapshot{Key: "child", Parent: "name"}) }))
	release := func(key string) error {
		return db.Update(func(tx *metadata.Tx) error {
			return tx.Release(metadata.Containerd, metadata.SnapshotNode(key))
		})
	}
	if err := release("name"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removal of a parent: %v", err)
	}
	must(t, release("child"))
	must(t, release("name"))
	must(t, db.View(func(tx *metadata.Tx) error {
		if _, err := tx.Layer(layer.Key); !errdefs.IsNotFound(err) {
			t.Errorf("the layer outlived its snapshot: %v", err)
		}
		return nil
	}))
}

func TestPullLapses(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, row := range []struct {
		testName string
		at       []time.Duration // when Lapse runs, after the last renewal
		left     bool
	}{
		{"fresh", []time.Duration{time.Hour, 23 * time.Hour}, true},
		{"a jump of the clock ends nothing", []time.Duration{10 * 365 * 24 * time.Hour}, true},
		{"backwards neither", []time.Duration{25 * time.Hour, -25 * time.Hour}, true},
		{"still out of time after the grace", []time.Duration{25 * time.Hour, 27 * time.Hour}, false},
	} {
		t.Run(row.testName, func(t *testing.T) {
			db := open(t)
			must(t, db.Update(func(tx *metadata.Tx) error {
				if err := tx.Renew("r", start); err != nil {
					return err
				}
				return putBlob(tx, blobA, metadata.PullHolder("r"))
			}))
			for _, d := range row.at {
				must(t, db.Update(func(tx *metadata.Tx) error { return tx.Lapse(start.Add(d)) }))
			}
			must(t, db.View(func(tx *metadata.Tx) error {
				if _, err := tx.Blob(blobA); row.left != (err == nil) {
					t.Errorf("left: %v", err)
				}
				return nil
			}))
		})
	}
}

func TestPages(t *testing.T) {
	db := open(t)
	must(t, db.Update(func(tx *metadata.Tx) error {
		for i := range 25 {
			if err := putBlob(tx, digest.FromString(fmt.Sprint(i)), "x"); err != nil {
				return err
			}
		}
		return nil
	}))
	seen := map[string]bool{}
	for after := ""; ; {
		var page []string
		must(t, db.View(func(tx *metadata.Tx) error { page = tx.Held("x", metadata.KindBlob, after, 10); return nil }))
		if len(page) == 0 {
			break
		}
		for _, k := range page {
			if seen[k] {
				t.Fatalf("%s twice", k)
			}
			seen[k] = true
		}
		after = page[len(page)-1]
	}
	if len(seen) != 25 {
		t.Errorf("%d of 25 keys", len(seen))
	}
}

func TestOpenWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	db, err := metadata.Open(path, nil)
	must(t, err)
	defer db.Close()
	if _, err := metadata.Open(path, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("second open: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func Example() {
	dir, _ := os.MkdirTemp("", "tank")
	defer os.RemoveAll(dir)
	db, err := metadata.Open(filepath.Join(dir, "metadata.db"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	blob := digest.FromString("hello")
	image := metadata.ImageHolder("docker.io/library/hello:latest")
	err = db.Update(func(tx *metadata.Tx) error {
		if err := tx.PutBlob(metadata.Blob{Digest: blob, Size: 5}); err != nil {
			return err
		}
		if err := tx.Hold(image, metadata.BlobNode(blob)); err != nil {
			return err
		}
		target := ocispec.Descriptor{Digest: blob}
		return tx.PutImage(metadata.Image{Ref: "docker.io/library/hello:latest", Target: target})
	})
	fmt.Println("recorded:", err)
	db.Update(func(tx *metadata.Tx) error { return tx.DeleteImage("docker.io/library/hello:latest") })
	err = db.View(func(tx *metadata.Tx) error { _, err := tx.Blob(blob); return err })
	fmt.Println("after the image: not found is", errdefs.IsNotFound(err))
	// Output:
	// recorded: <nil>
	// after the image: not found is true
}

// TestOpenWritesNothing opens an intact file and finds it unchanged: a command that only reads waits for no disk.
func TestOpenWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	content := func() string {
		t.Helper()
		db, err := metadata.Open(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if first := content(); content() != first {
		t.Error("Open wrote to a file that has the schema")
	}
}
