package content

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

var (
	alice = metadata.PullHolder("alice")
	bob   = metadata.PullHolder("bob")
)

// root is an open root. If damaged is true, the test ends without Check.
type root struct {
	*Store
	t       *testing.T
	path    string
	fs      *fsystest.FS
	damaged bool
}

// open opens a root, and checks its invariants when the test ends.
func open(t *testing.T, path string, opts *Options) *root {
	t.Helper()
	db, err := metadata.Open(filepath.Join(path, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	must(t, db.Update(func(tx *metadata.Tx) error { // Check requires the records of the holders
		return errors.Join(tx.Renew("alice", time.Now()), tx.Renew("bob", time.Now()))
	}))
	var o Options
	if opts != nil {
		o = *opts
	}
	fs := fsystest.New(t, path)
	o.FS = fs
	s, err := Open(path, db, &o)
	must(t, err)
	r := &root{Store: s, t: t, path: path, fs: fs}
	t.Cleanup(func() {
		if !r.damaged {
			must(t, db.Check(func(f metadata.Fault) { t.Error(f) }))
			must(t, s.Check(context.Background(), func(f metadata.Fault) { t.Error(f) }))
		}
		must(t, s.Close())
		for _, pattern := range []string{"ingest/.*", "blobs/.*", "blobs/*/.*"} {
			if left, _ := filepath.Glob(filepath.Join(path, pattern)); len(left) > 0 {
				t.Errorf("staged names are left: %v", left)
			}
		}
		must(t, db.Close())
	})
	return r
}

// reopen opens the root as a later process does. The first store must not be used afterwards.
func (r *root) reopen(opts *Options) *Store {
	r.t.Helper()
	s, err := Open(r.path, r.db, opts)
	must(r.t, err)
	r.t.Cleanup(func() { s.Close() })
	return s
}

// names lists the entries of a directory of the root, except staged names.
func (r *root) names(dir string) (names []string) {
	r.t.Helper()
	es, err := os.ReadDir(filepath.Join(r.path, dir))
	must(r.t, err)
	for _, e := range es {
		if !rootdir.IsStaged(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

func (r *root) holders(d digest.Digest) (hs []metadata.Holder) {
	r.t.Helper()
	must(r.t, r.db.View(func(tx *metadata.Tx) error {
		hs = tx.Holders(metadata.BlobNode(d))
		return nil
	}))
	return hs
}

// plant writes a file below blobs/ without a record, as a crash between rename and record leaves it.
func (r *root) plant(d digest.Digest, data string) {
	r.t.Helper()
	os.Remove(r.Path(d))
	must(r.t, os.WriteFile(r.Path(d), []byte(data), 0o444))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// class fails the test unless is returns true for err.
func class(t *testing.T, is func(error) bool, err error) {
	t.Helper()
	if !is(err) {
		t.Fatalf("wrong class: %v", err)
	}
}

// start opens a writer that is closed when the test ends.
func start(t *testing.T, hs *HolderStore, ref string, desc ocispec.Descriptor) *writer {
	t.Helper()
	w, err := hs.Writer(t.Context(), content.WithRef(ref), content.WithDescriptor(desc))
	must(t, err)
	t.Cleanup(func() { w.Close() })
	return w.(*writer)
}

func write(t *testing.T, w content.Writer, data string) {
	t.Helper()
	n, err := w.Write([]byte(data))
	must(t, err)
	if n != len(data) {
		t.Fatalf("wrote %d of %d bytes", n, len(data))
	}
}

// put commits a blob.
func put(t *testing.T, hs *HolderStore, data string) digest.Digest {
	t.Helper()
	d := digest.FromString(data)
	w := start(t, hs, "put-"+d.String(), ocispec.Descriptor{Size: int64(len(data))})
	write(t, w, data)
	must(t, w.Commit(t.Context(), int64(len(data)), d))
	return d
}
