package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// over opens a root whose layers come from blobs. It is checked when the test ends.
func over(t *testing.T, blobs snapshot.Blobs, opts snapshot.Options) *world {
	t.Helper()
	root := t.TempDir()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	opts.SyncDelay = -1
	s, err := snapshot.Open(root, db, blobs, &opts)
	must(t, err)
	w := &world{Store: s, root: root, db: db}
	t.Cleanup(func() {
		report := func(err error) { t.Error(err) }
		must(t, errors.Join(db.Check(report), w.Check(context.Background(), report), w.close()))
	})
	return w
}

// explosive panics when the bytes at after are read, or at once when after is 0.
type explosive struct {
	memory
	after int64
}

func (e explosive) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	if e.after == 0 {
		panic("open")
	}
	r, err := e.memory.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, e.after), fuse{}), r}, nil
}

type fuse struct{}

func (fuse) Read([]byte) (int, error) { panic("read") }

// TestPanic shows that a panic while a layer is unpacked, in whichever goroutine, is that unpack's error: the store goes on, and
// nothing unfinished is left.
func TestPanic(t *testing.T) {
	requireRoot(t)
	tar := Tar(t, F("a", string(bytes.Repeat([]byte("x"), 3<<20))))
	encoder, err := zstd.NewWriter(nil)
	must(t, err)
	defer encoder.Close()
	for _, row := range []struct {
		testName, mediaType string
		data                []byte
	}{
		{"plain", ocispec.MediaTypeImageLayer, tar},
		{"gzip", ocispec.MediaTypeImageLayerGzip, Gzip(t, tar)},
		{"zstd", ocispec.MediaTypeImageLayerZstd, encoder.EncodeAll(tar, nil)},
	} {
		size := int64(len(row.data))
		for _, after := range []int64{0, 1, size / 2, size} {
			t.Run(fmt.Sprintf("%s after %d of %d", row.testName, after, size), func(t *testing.T) {
				l := snapshot.Layer{Blob: ocispec.Descriptor{MediaType: row.mediaType, Digest: digest.FromBytes(row.data), Size: size}}
				w := over(t, explosive{memory{l.Blob.Digest: row.data}, after}, snapshot.Options{})
				limited, cancel := context.WithTimeout(ctx, 20*time.Second)
				defer cancel()
				for range 2 {
					if _, err := w.Unpack(limited, holder, l); !errdefs.IsInternal(err) {
						t.Fatalf("a panic: %v", err)
					}
				}
				if left := staged(w.root); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			})
		}
	}
}

// tenants gives each caller the blobs that it may see.
type tenants struct {
	of      map[string]memory
	opening func(tenant string)
}

type tenantKey struct{}

func (s tenants) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	tenant, _ := ctx.Value(tenantKey{}).(string)
	if s.opening != nil {
		s.opening(tenant)
	}
	return s.of[tenant].Open(ctx, d)
}

func (s tenants) Size(d digest.Digest) (int64, bool) { return 0, false }

// TestReadForTheCaller shows that a blob is read on behalf of who wants the layer, and that one who may not see it does not
// fail another who waits for the same unpack.
func TestReadForTheCaller(t *testing.T) {
	requireRoot(t)
	mine := memory{}
	l := mine.add(t, Tar(t, F("a", "1")))
	var once sync.Once
	joining := make(chan struct{})
	w := over(t, tenants{map[string]memory{"mine": mine}, func(tenant string) {
		if tenant == "other" { // began first, and the owner of the blob joins it
			once.Do(func() { close(joining) })
			time.Sleep(50 * time.Millisecond)
		}
	}}, snapshot.Options{})
	failed := make(chan error, 1)
	go func() {
		_, err := w.Unpack(context.WithValue(ctx, tenantKey{}, "other"), holder, l)
		failed <- err
	}()
	<-joining
	if _, err := w.Unpack(context.WithValue(ctx, tenantKey{}, "mine"), holder, l); err != nil {
		t.Errorf("who may see the blob: %v", err)
	}
	if err := <-failed; err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("who may not: %v", err)
	}
}

// TestRepairForNobody shows that a broken layer is made anew from a blob that the caller who found it may not see.
func TestRepairForNobody(t *testing.T) {
	requireRoot(t)
	blobs := memory{}
	l := blobs.add(t, Tar(t, F("a", "1")))
	w := over(t, shared{tenants{of: map[string]memory{"mine": blobs, "": blobs}}, blobs}, snapshot.Options{})
	_, err := w.Unpack(context.WithValue(ctx, tenantKey{}, "mine"), holder, l)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.layerDir(t, l.DiffID.String()), "fs", "a"), []byte("2"), 0o644))
	must(t, w.Doubt("", []digest.Digest{l.DiffID}))
	if _, err := w.Unpack(context.WithValue(ctx, tenantKey{}, "other"), holder, l); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(w.layerDir(t, l.DiffID.String()), "fs", "a")); err != nil || string(b) != "1" {
		t.Errorf("%q, %v", b, err)
	}
}

// shared is tenants whose blobs everybody knows to be there.
type shared struct {
	tenants
	all memory
}

func (s shared) Size(d digest.Digest) (int64, bool) { return s.all.Size(d) }

// TestAdoptable shows that a known layer is answered as a miss exactly when containerd would take its blob without fetching it,
// whatever Blobs has.
func TestAdoptable(t *testing.T) {
	requireRoot(t)
	for _, adoptable := range []bool{false, true} {
		t.Run(fmt.Sprint(adoptable), func(t *testing.T) {
			blobs := memory{}
			var asked []digest.Digest
			w := over(t, blobs, snapshot.Options{Adoptable: func(_ context.Context, d digest.Digest) bool {
				asked = append(asked, d)
				return adoptable
			}})
			l := blobs.add(t, Tar(t, F("a", "1")))
			sn := w.For(metadata.Containerd)
			labels := snapshots.WithLabels(map[string]string{
				snapshots.LabelSnapshotRef:                l.DiffID.String(),
				snapshots.LabelSnapshotDiffID:             l.DiffID.String(),
				"containerd.io/snapshot/cri.layer-digest": l.Blob.Digest.String(),
			})
			_, err := sn.Prepare(ctx, "unknown", "", labels)
			must(t, err)
			if len(asked) > 0 {
				t.Errorf("asked about %v, which is not unpacked", asked)
			}
			_, err = w.Unpack(ctx, holder, l)
			must(t, err)
			if _, err := sn.Prepare(ctx, "known", "", labels); errdefs.IsAlreadyExists(err) == adoptable || len(asked) != 1 {
				t.Errorf("%v, asked about %v", err, asked)
			}
		})
	}
}
