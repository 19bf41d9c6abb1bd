package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

// This suite covers what containerd's own suites do not test: the effects of its garbage collector on the
// stores, and the adoption of blobs of other holders.

// depth is the stores as containerd uses them, in process or over the socket.
type depth struct {
	*world
	cs content.Store
	sn snapshots.Snapshotter
}

// another is a holder other than containerd.
var another = metadata.PullHolder("another")

func atDepths(t *testing.T, test func(ctx context.Context, t *testing.T, d depth)) {
	for _, name := range []string{"in process", "over the socket"} {
		t.Run(name, func(t *testing.T) {
			requireRoot(t)
			w := start(t)
			must(t, w.db.Update(func(tx *metadata.Tx) error { return tx.Renew("another", time.Now()) }))
			d := depth{w, w.blobs.For(metadata.Containerd), w.snapshots.For(metadata.Containerd)}
			if name == "over the socket" {
				d.cs, d.sn = contentproxy.NewContentStore(w.conn), w.sn()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			test(ctx, t, d)
		})
	}
}

func blobOf(text string) (ocispec.Descriptor, []byte) {
	return ocispec.Descriptor{Digest: digest.FromString(text), Size: int64(len(text))}, []byte(text)
}

// seen returns the blobs that containerd's garbage collector sees.
func (d depth) seen(ctx context.Context, t *testing.T) (ds []digest.Digest) {
	t.Helper()
	must(t, d.cs.Walk(ctx, func(i content.Info) error {
		ds = append(ds, i.Digest)
		return nil
	}))
	return ds
}

// TestAdoption shows that each call by which containerd learns of a blob of another holder holds
// the blob, and that this hold outlives that of the other holder.
func TestAdoption(t *testing.T) {
	open := func(ctx context.Context, cs content.Store, b ocispec.Descriptor) (content.Writer, error) {
		return cs.Writer(ctx, content.WithRef("default/1/layer-"+b.Digest.String()),
			content.WithDescriptor(ocispec.Descriptor{Size: b.Size}))
	}
	for name, learn := range map[string]func(ctx context.Context, cs content.Store, b ocispec.Descriptor,
		data []byte) error{
		"Info": func(ctx context.Context, cs content.Store, b ocispec.Descriptor, _ []byte) error {
			_, err := cs.Info(ctx, b.Digest)
			return err
		},
		"ReaderAt": func(ctx context.Context, cs content.Store, b ocispec.Descriptor, data []byte) error {
			got, err := content.ReadBlob(ctx, cs, b)
			if err == nil && string(got) != string(data) {
				err = fmt.Errorf("read %q", got)
			}
			return err
		},
		"Update": func(ctx context.Context, cs content.Store, b ocispec.Descriptor, _ []byte) error {
			_, err := cs.Update(ctx, content.Info{Digest: b.Digest, Labels: map[string]string{"a": "b"}}, "labels.a")
			return err
		},
		"a Writer that is not needed": func(ctx context.Context, cs content.Store, b ocispec.Descriptor,
			_ []byte) error {
			_, err := cs.Writer(ctx, content.WithRef("ref"), content.WithDescriptor(b))
			if errdefs.IsAlreadyExists(err) {
				err = nil
			}
			return err
		},
		"a Commit that is not needed": func(ctx context.Context, cs content.Store, b ocispec.Descriptor,
			data []byte) error {
			w, err := open(ctx, cs, b)
			if err != nil {
				return err
			}
			defer w.Close()
			if _, err := w.Write(data); err != nil {
				return err
			}
			if err := w.Commit(ctx, b.Size, b.Digest); !errdefs.IsAlreadyExists(err) {
				return fmt.Errorf("commit: %w", errors.Join(err, errors.New("the blob was here")))
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			atDepths(t, func(ctx context.Context, t *testing.T, d depth) {
				b, data := blobOf("pulled by another")
				put(ctx, t, d.blobs.For(another), b, data)
				if ds := d.seen(ctx, t); len(ds) > 0 {
					t.Fatalf("containerd sees %v before its first request", ds)
				}
				must(t, learn(ctx, d.cs, b, data))
				must(t, d.blobs.For(another).Delete(ctx, b.Digest))
				_, err := d.blobs.Sweep(ctx)
				must(t, err)
				if ds := d.seen(ctx, t); !slices.Equal(ds, []digest.Digest{b.Digest}) {
					t.Errorf("containerd sees %v", ds)
				}
				if got, err := content.ReadBlob(ctx, d.cs, b); err != nil || string(got) != string(data) {
					t.Errorf("after the other released it: %q, %v", got, err)
				}
			})
		})
	}
}

// TestDeleteIsRelease shows that a Delete by containerd ends only its own hold. A blob without
// another hold is gone, and a sweep deletes its file.
func TestDeleteIsRelease(t *testing.T) {
	atDepths(t, func(ctx context.Context, t *testing.T, d depth) {
		both, data := blobOf("held by both")
		put(ctx, t, d.blobs.For(another), both, data)
		own, ownData := blobOf("containerd's")
		put(ctx, t, d.cs, own, ownData)
		if err := d.cs.Delete(ctx, both.Digest); !errdefs.IsNotFound(err) {
			t.Errorf("delete of a blob that containerd does not hold: %v", err)
		}
		_, err := d.cs.Info(ctx, both.Digest)
		must(t, err)
		for _, b := range []ocispec.Descriptor{both, own} {
			must(t, d.cs.Delete(ctx, b.Digest))
			if err := d.cs.Delete(ctx, b.Digest); !errdefs.IsNotFound(err) {
				t.Errorf("second delete: %v", err)
			}
		}
		_, err = d.blobs.Sweep(ctx)
		must(t, err)
		if ds := d.seen(ctx, t); len(ds) > 0 {
			t.Errorf("containerd sees %v", ds)
		}
		if _, err := content.ReadBlob(ctx, d.blobs.For(another), both); err != nil {
			t.Errorf("blob of the other holder: %v", err)
		}
		if _, err := d.cs.Info(ctx, own.Digest); !errdefs.IsNotFound(err) {
			t.Errorf("blob of containerd: %v", err)
		}
		if _, err := os.Stat(d.blobs.Path(own.Digest)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("file of the blob of containerd: %v", err)
		}
	})
}

// grow runs fn for at most a minute and meanwhile makes the database so large that bbolt remaps it
// several times. A remap waits for all read transactions.
func (d depth) grow(ctx context.Context, t *testing.T, fn func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	before := d.size(t)
	var both sync.WaitGroup
	grown := make(chan error, 1)
	both.Go(func() {
		var err error
		for i := 0; i < 40 && err == nil; i++ {
			err = d.db.Update(func(tx *metadata.Tx) error {
				for n := range 100 {
					sn := metadata.Snapshot{Key: fmt.Sprintf("grown %d/%d", i, n), Kind: metadata.Active,
						Labels: map[string]string{"a": longLabel}}
					if err := errors.Join(tx.PutSnapshot(sn),
						tx.Hold(another, metadata.SnapshotNode(sn.Key))); err != nil {
						return err
					}
				}
				return nil
			})
		}
		grown <- err
	})
	done := make(chan error, 1)
	both.Go(func() { done <- fn(ctx) })
	select {
	case err := <-done:
		must(t, err)
	case <-ctx.Done():
		t.Fatal("fn did not return within a minute")
	}
	both.Wait()
	must(t, <-grown)
	if after := d.size(t); after < 8*before || after < 8<<20 {
		t.Errorf("the database grew only from %d to %d bytes", before, after)
	}
}

func (d depth) size(t *testing.T) int64 {
	t.Helper()
	fi, err := os.Stat(filepath.Join(d.root, "metadata.db"))
	must(t, err)
	return fi.Size()
}

// longLabel is almost as long as containerd allows. One page of a listing is then larger than what
// a stream sends ahead of its reader.
var longLabel = strings.Repeat("x", 3500)

// TestDeleteInsideList shows that the garbage collector can delete blobs from inside a listing of
// them while the database grows.
func TestDeleteInsideList(t *testing.T) {
	atDepths(t, func(ctx context.Context, t *testing.T, d depth) {
		const n = 300
		for i := range n {
			b, data := blobOf(fmt.Sprint("blob ", i))
			put(ctx, t, d.cs, b, data)
			_, err := d.cs.Update(ctx, content.Info{Digest: b.Digest, Labels: map[string]string{"a": longLabel}},
				"labels.a")
			must(t, err)
		}
		deleted := 0
		d.grow(ctx, t, func(ctx context.Context) error {
			return d.cs.Walk(ctx, func(i content.Info) error {
				deleted++
				return d.cs.Delete(ctx, i.Digest)
			})
		})
		if left := d.seen(ctx, t); deleted != n || len(left) > 0 {
			t.Errorf("%d of %d were deleted, %d are left", deleted, n, len(left))
		}
	})
}

// TestRemoveInsideList is like TestDeleteInsideList, for snapshots.
func TestRemoveInsideList(t *testing.T) {
	atDepths(t, func(ctx context.Context, t *testing.T, d depth) {
		const n = 150
		for i := range n {
			_, err := d.sn.Prepare(ctx, fmt.Sprintf("default/%d/key", i), "",
				snapshots.WithLabels(map[string]string{"a": longLabel}))
			must(t, err)
		}
		removed := 0
		d.grow(ctx, t, func(ctx context.Context) error {
			return d.sn.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
				removed++
				return d.sn.Remove(ctx, i.Name)
			})
		})
		if removed != n {
			t.Errorf("%d of %d were removed", removed, n)
		}
	})
}

// TestAbortWhileListing shows that the garbage collector can abort the ingests that it lists while
// clients begin, write and commit others. It neither lists nor aborts ingests of another holder.
func TestAbortWhileListing(t *testing.T) {
	atDepths(t, func(ctx context.Context, t *testing.T, d depth) {
		begin := func(cs content.Store, ref string) {
			w, err := cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{Size: 10}))
			must(t, err)
			_, err = w.Write([]byte("half"))
			must(t, err)
			must(t, w.Close())
		}
		const n = 100
		for i := range n {
			begin(d.cs, fmt.Sprintf("default/%d/old", i))
		}
		begin(d.blobs.For(another), "default/0/old")
		var pulls sync.WaitGroup
		pulls.Go(func() {
			for i := range n {
				b, data := blobOf(fmt.Sprint("new ", i))
				w, err := d.cs.Writer(ctx, content.WithRef(fmt.Sprintf("default/%d/new", i)),
					content.WithDescriptor(ocispec.Descriptor{Size: b.Size}))
				if err == nil {
					_, err = w.Write(data)
					err = errors.Join(err, w.Commit(ctx, b.Size, b.Digest), w.Close())
				}
				if err != nil {
					t.Errorf("new ingest %d: %v", i, err)
				}
			}
		})
		aborted := 0
		for {
			sts, err := d.cs.ListStatuses(ctx)
			must(t, err)
			old := slices.DeleteFunc(sts, func(st content.Status) bool { return !strings.HasSuffix(st.Ref, "/old") })
			if len(old) == 0 {
				break
			}
			for _, st := range old {
				if st.Offset != 4 || st.Total != 10 {
					t.Errorf("ingest %s: %d of %d bytes", st.Ref, st.Offset, st.Total)
				}
				must(t, d.cs.Abort(ctx, st.Ref))
				aborted++
			}
		}
		pulls.Wait()
		if ds := d.seen(ctx, t); aborted != n || len(ds) != n {
			t.Errorf("%d of %d were aborted, %d of %d committed", aborted, n, len(ds), n)
		}
		st, err := d.blobs.For(another).Status(ctx, "default/0/old")
		if err != nil || st.Offset != 4 {
			t.Errorf("ingest of another holder: %+v, %v", st, err)
		}
	})
}
