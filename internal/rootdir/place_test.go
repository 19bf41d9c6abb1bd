package rootdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
)

// testDir is a root with all pools in a temporary directory.
type testDir struct {
	*Dir
	t  *testing.T
	db *metadata.DB
}

func openTest(t *testing.T, fs fsys.FS) *testDir {
	t.Helper()
	return reopenTest(t, t.TempDir(), fs)
}

func reopenTest(t *testing.T, root string, fs fsys.FS) *testDir {
	t.Helper()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	d, err := Open(root, db, &Options{Pools: []string{Blobs, Ingest, Layers, Rootfs, Snapshots, Scratch}, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	for _, dir := range []string{"blobs/sha256", "rootfs/sha256"} {
		if err := os.MkdirAll(d.Path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &testDir{d, t, db}
}

const hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// build makes an entry of each kind, as those that build them do.
func (d *testDir) build(kind metadata.Kind) Entry {
	d.t.Helper()
	e := Entry{Kind: kind}
	switch kind {
	case metadata.KindBlob:
		e.Name, e.Durable, e.Staged = "sha256/"+hex, true, d.Path(Ingest, "data")
		if err := os.WriteFile(e.Staged, nil, 0o400); err != nil {
			d.t.Fatal(err)
		}
		return e
	case metadata.KindLayer:
		e.Staged = d.Stage(Layers, "layer")
	case metadata.KindSnapshot:
		e.Staged = d.Stage(Snapshots, "snapshot")
	case metadata.KindRootfs:
		e.Name, e.Durable = "sha256/"+hex, true
		e.Staged = d.StageBeside(d.Path(Rootfs, e.Name), "rootfs")
	}
	if err := os.MkdirAll(filepath.Join(e.Staged, "fs"), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(e.Staged, "seal"), nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	return e
}

// record makes the record of an entry, held by containerd.
func record(kind metadata.Kind, name string) Record {
	return func(tx *metadata.Tx, dir string) (bool, error) {
		switch kind {
		case metadata.KindBlob:
			d := digest.NewDigestFromEncoded(digest.SHA256, dir)
			return true, errors.Join(tx.PutBlob(metadata.Blob{Digest: d}),
				tx.Hold(metadata.Containerd, metadata.BlobNode(d)))
		case metadata.KindLayer:
			return true, errors.Join(tx.PutLayer(metadata.Layer{Key: name, Dir: dir}),
				tx.Hold(metadata.Containerd, metadata.LayerNode(name)))
		case metadata.KindRootfs:
			d := digest.NewDigestFromEncoded(digest.SHA256, dir)
			return true, errors.Join(tx.PutRootfs(metadata.Rootfs{Manifest: d}),
				tx.Hold(metadata.Containerd, metadata.RootfsNode(d)))
		default:
			return true, errors.Join(tx.PutSnapshot(metadata.Snapshot{Key: name, Kind: metadata.Active, Dir: dir}),
				tx.Hold(metadata.Containerd, metadata.SnapshotNode(name)))
		}
	}
}

// recorded lists the paths of the entries that have a record.
func (d *testDir) recorded() (paths []string) {
	d.t.Helper()
	err := d.db.View(func(tx *metadata.Tx) error {
		if _, err := tx.Blob("sha256:" + hex); err == nil {
			paths = append(paths, d.Path(Blobs, "sha256", hex))
		}
		if _, err := tx.Rootfs("sha256:" + hex); err == nil {
			paths = append(paths, d.Path(Rootfs, "sha256", hex), d.Path(Rootfs, "sha256", hex+".seal"))
		}
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			l, err := tx.Layer(key)
			if err != nil {
				return err
			}
			paths = append(paths, d.Path(Layers, l.Dir))
		}
		dirs, err := tx.SnapshotDirs()
		for dir := range dirs {
			paths = append(paths, d.Path(Snapshots, dir))
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return paths
}

// entries lists what is in the pools, staged names included.
func (d *testDir) entries() (paths []string) {
	for _, pattern := range []string{"blobs/sha256/*", "ingest/*", "layers/*", "rootfs/sha256/*", "snapshots/*"} {
		found, err := filepath.Glob(d.Path(pattern))
		if err != nil {
			d.t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	return paths
}

var allKinds = []metadata.Kind{metadata.KindBlob, metadata.KindLayer, metadata.KindRootfs, metadata.KindSnapshot}

// TestPlace: an entry of each kind is in its position when it is recorded, sweeps wait until it is,
// and what had the name before is gone.
func TestPlace(t *testing.T) {
	for _, kind := range allKinds {
		t.Run(string(kind), func(t *testing.T) {
			d := openTest(t, nil)
			for range 2 {
				var recorded bool
				swept := make(chan bool)
				put := record(kind, "key")
				err := d.Place(d.build(kind), func(tx *metadata.Tx, dir string) (bool, error) {
					if entries := d.entries(); !slices.ContainsFunc(entries,
						func(p string) bool { return filepath.Base(p) == dir }) {
						t.Errorf("entry %s is not in its position: %q", dir, entries)
					}
					go func() {
						defer d.BeginSweep()()
						swept <- recorded
					}()
					time.Sleep(10 * time.Millisecond) // a sweep that does not wait is through by then
					used, err := put(tx, dir)
					recorded = true
					return used, err
				})
				if err != nil {
					t.Fatal(err)
				}
				if !<-swept {
					t.Error("a sweep did not wait for the record")
				}
				d.Wait()
				for _, path := range d.recorded() {
					if !exists(path) {
						t.Errorf("%s is recorded and missing", path)
					}
				}
			}
		})
	}
}

// TestPlaceFails lets each step fail. Whatever was built is gone then, except for a blob, which its
// downloader resumes or the next one adopts; and there is no record.
func TestPlaceFails(t *testing.T) {
	refused := errors.New("refused")
	for _, row := range []struct {
		name  string
		fault string
		put   func(metadata.Kind) Record
		blob  []string // what remains of a blob
		want  error    // nil: no error
	}{
		{name: "rename", fault: "rename %s: fail EIO", blob: []string{"ingest/data"},
			want: errors.New("input/output error")},
		{name: "record", want: refused, blob: []string{"blobs/sha256/" + hex},
			put: func(metadata.Kind) Record {
				return func(*metadata.Tx, string) (bool, error) {
					return true,
						refused
				}
			}},
		{name: "record without a holder", want: errdefs.ErrFailedPrecondition, blob: []string{"blobs/sha256/" + hex},
			put: func(k metadata.Kind) Record {
				return func(tx *metadata.Tx, dir string) (bool, error) {
					_, err := record(k, "key")(tx, dir)
					return true, errors.Join(err, tx.ReleaseAll(metadata.Containerd),
						tx.PutLayer(metadata.Layer{Key: "free"}))
				}
			}},
		{name: "not needed", blob: []string{"blobs/sha256/" + hex},
			put: func(metadata.Kind) Record { return func(*metadata.Tx, string) (bool, error) { return false, nil } }},
	} {
		for _, kind := range allKinds {
			t.Run(row.name+" of a "+string(kind), func(t *testing.T) {
				root := t.TempDir()
				fs := fsystest.New(t, root)
				d := reopenTest(t, root, fs)
				e := d.build(kind)
				if row.fault != "" {
					pattern := map[metadata.Kind]string{
						metadata.KindBlob: "blobs/sha256/" + hex, metadata.KindLayer: "layers/[0-9]*",
						metadata.KindRootfs: "rootfs/sha256/" + hex, metadata.KindSnapshot: "snapshots/[0-9]*",
					}[kind]
					fs.Add(t, fmt.Sprintf(row.fault, pattern))
				}
				put := record(kind, "key")
				if row.put != nil {
					put = row.put(kind)
				}
				err := d.Place(e, put)
				switch {
				case row.want == nil && err != nil:
					t.Errorf("error: %v", err)
				case row.want != nil &&
					(err == nil || !errors.Is(err, row.want) && !strings.Contains(err.Error(), row.want.Error())):
					t.Errorf("error %v, want %v", err, row.want)
				}
				d.Wait()
				var want []string
				if kind == metadata.KindBlob {
					for _, path := range row.blob {
						want = append(want, d.Path(path))
					}
				}
				if got := d.entries(); !slices.Equal(got, want) {
					t.Errorf("entries %q, want %q", got, want)
				}
				if got := d.recorded(); len(got) > 0 {
					t.Errorf("recorded: %q", got)
				}
			})
		}
	}
}

// TestPlaceSyncFails: an entry whose record would say that it is on the disk is not recorded when
// the sync fails.
func TestPlaceSyncFails(t *testing.T) {
	for _, row := range []struct {
		kind      metadata.Kind
		journaled bool // a sync of a file covers the directories
		fault     string
		want      []string // names that remain, in the pool
	}{
		{kind: metadata.KindBlob, fault: "syncdir blobs/sha256: fail EIO", want: []string{hex}},
		{kind: metadata.KindRootfs, fault: "syncdir rootfs/sha256: fail EIO"},
		{kind: metadata.KindSnapshot, fault: "sync snapshots/*/seal: fail EIO"},
		{kind: metadata.KindSnapshot, journaled: true, fault: "sync snapshots/*/seal: fail ENOSPC"},
		{kind: metadata.KindSnapshot, fault: "syncdir snapshots/*/fs: fail EIO"},
		{kind: metadata.KindSnapshot, fault: "syncdir snapshots/*: fail EIO"},
		{kind: metadata.KindSnapshot, fault: "syncdir snapshots: fail EIO"},
	} {
		t.Run(row.fault, func(t *testing.T) {
			root := t.TempDir()
			fs := fsystest.New(t, root, row.fault)
			d := reopenTest(t, root, fs)
			d.journaled[Snapshots] = row.journaled
			if err := d.Place(d.build(row.kind), record(row.kind, "key")); err == nil || fs.Hits() != 1 {
				t.Errorf("error %v, %d faults", err, fs.Hits())
			}
			d.Wait()
			var got []string
			for _, path := range d.entries() {
				got = append(got, filepath.Base(path))
			}
			if !slices.Equal(got, row.want) || len(d.recorded()) > 0 {
				t.Errorf("entries %q, want %q; recorded: %q", got, row.want, d.recorded())
			}
		})
	}
}

// TestPlaceSyncs: nothing is synced for an entry that is provisional, and everything right in a snapshot before its
// record is written. In a file system with a journal, the sync of its file is enough.
func TestPlaceSyncs(t *testing.T) {
	for _, row := range []struct {
		kind      metadata.Kind
		journaled bool
		durable   bool
		want      []string
	}{
		{kind: metadata.KindBlob, durable: true, want: []string{"syncdir blobs/sha256"}},
		{kind: metadata.KindLayer},
		{kind: metadata.KindRootfs, durable: true, want: []string{"syncdir rootfs/sha256"}},
		{kind: metadata.KindRootfs},
		{kind: metadata.KindSnapshot, journaled: true, want: []string{"sync snapshots/1/seal"}},
		{kind: metadata.KindSnapshot, want: []string{
			"sync snapshots/1/seal", "syncdir snapshots/1/fs", "syncdir snapshots/1", "syncdir snapshots",
		}},
	} {
		t.Run(fmt.Sprint(row.kind, row.durable, row.journaled), func(t *testing.T) {
			root := t.TempDir()
			fs := fsystest.New(t, root)
			d := reopenTest(t, root, fs)
			d.journaled[Snapshots] = row.journaled
			e := d.build(row.kind)
			e.Durable = row.durable
			if err := d.Place(e, record(row.kind, "key")); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, line := range fs.History() {
				if strings.HasPrefix(line, "sync") {
					got = append(got, line)
				}
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}

// TestPlaceCrash stops the machine at every operation in turn, and opens the root again: every
// record has its bytes, and what has no record is garbage that the next process finds.
func TestPlaceCrash(t *testing.T) {
	for _, kind := range allKinds {
		for n := 1; ; n++ {
			root := t.TempDir()
			fs := fsystest.New(t, root)
			d := reopenTest(t, root, fs)
			e := d.build(kind)
			fs.Add(t, fmt.Sprintf("any #%d: crash after", n))
			err := d.Place(e, record(kind, "key"))
			crashed := fs.Hits() > 0
			d.Close()
			d.db.Close()
			d = reopenTest(t, root, nil)
			got := d.recorded()
			for _, path := range got {
				if !exists(path) {
					t.Errorf("%s, operation %d: %s is recorded and missing", kind, n, path)
				}
			}
			if err == nil && len(got) == 0 {
				t.Errorf("%s, operation %d: placed and not recorded", kind, n)
			}
			if !crashed {
				break
			}
		}
	}
}

// TestPlaceAtOnce places entries at once, every second of which is refused, while sweeps take away
// what has no record. Records of one transaction are made again when another one is refused.
func TestPlaceAtOnce(t *testing.T) {
	const callers, rounds = 8, 20
	d := openTest(t, nil)
	refused := errors.New("refused")
	var wg, sweeps sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range rounds {
				kind := []metadata.Kind{metadata.KindLayer, metadata.KindSnapshot}[c%2]
				put := record(kind, fmt.Sprint(c, " ", i))
				want := error(nil)
				if i%2 == 0 {
					put, want = func(*metadata.Tx, string) (bool, error) { return true, refused }, refused
				}
				if err := d.Place(d.build(kind), put); !errors.Is(err, want) {
					t.Errorf("error %v, want %v", err, want)
				}
			}
		})
	}
	stop := make(chan struct{})
	sweeps.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				d.sweep()
			}
		}
	})
	wg.Wait()
	close(stop)
	sweeps.Wait()
	got := d.recorded()
	if len(got) != callers*rounds/2 {
		t.Errorf("%d records, want %d", len(got), callers*rounds/2)
	}
	for _, path := range got {
		if !exists(path) {
			t.Errorf("%s is recorded and missing", path)
		}
	}
	d.Wait()
	if entries := d.entries(); len(entries) != len(got) {
		t.Errorf("%d entries, want %d: %q", len(entries), len(got), entries)
	}
}

// sweep deletes the entries that have no record.
func (d *testDir) sweep() {
	defer d.BeginSweep()()
	known := d.recorded()
	for _, path := range d.entries() {
		if !slices.Contains(known, path) && !IsStaged(filepath.Base(path)) {
			if err := d.Trash(path); err != nil {
				d.t.Error(err)
			}
		}
	}
}

// TestPlaceCopies: a blob whose ingest lies on another file system is copied, and the copy gets the
// name.
func TestPlaceCopies(t *testing.T) {
	root := t.TempDir()
	fs := fsystest.New(t, root, "rename blobs/sha256/"+hex+": fail EXDEV")
	d := reopenTest(t, root, fs)
	e := d.build(metadata.KindBlob)
	e.Copy = func(to string) error {
		if !IsStaged(filepath.Base(to)) || filepath.Dir(to) != d.Path(Blobs, "sha256") {
			t.Errorf("copied to %s", to)
		}
		return os.Link(e.Staged, to)
	}
	if err := d.Place(e, record(e.Kind, "")); err != nil {
		t.Fatal(err)
	}
	if got := d.recorded(); len(got) != 1 || !exists(got[0]) {
		t.Errorf("recorded %q", got)
	}
	e.Copy = func(to string) error { return errors.Join(os.WriteFile(to, nil, 0o600), errdefs.ErrDataLoss) }
	fs.Add(t, "rename blobs/sha256/"+hex+": fail EXDEV")
	if err := d.Place(e, record(e.Kind, "")); !errdefs.IsDataLoss(err) {
		t.Errorf("error of a copy that failed: %v", err)
	}
	if got, err := filepath.Glob(d.Path(Blobs, "sha256", ".*")); err != nil || len(got) > 0 {
		t.Errorf("left of a copy that failed: %q, %v", got, err)
	}
}
