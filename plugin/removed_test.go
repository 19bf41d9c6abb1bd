package plugin_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
)

// cutStore truncates the files of its blobs and can remove a blob as soon as it is opened.
type cutStore struct {
	content.Store
	cut     atomic.Int64 // readable bytes of each file
	removed atomic.Bool  // whether to remove a blob once it is open
}

func (c *cutStore) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := c.Store.ReaderAt(ctx, d)
	if err == nil && c.removed.Load() {
		err = c.Delete(ctx, d.Digest)
	}
	return cutReader{ra, c.cut.Load()}, err
}

type cutReader struct {
	content.ReaderAt
	cut int64
}

func (r cutReader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReaderAt.ReadAt(p[:max(0, min(int64(len(p)), r.cut-off))], off)
}

// TestReadOfRemovedBlob shows that a blob that is removed between two reads is reported as not
// found, and neither as damaged nor as ended.
func TestReadOfRemovedBlob(t *testing.T) {
	requireRoot(t)
	for _, row := range []struct {
		testName string
		remove   func(ctx context.Context, c *cutStore, d digest.Digest) error
		want     func(error) bool
	}{
		{"between two calls", func(ctx context.Context, c *cutStore, d digest.Digest) error {
			return c.Delete(ctx, d)
		}, errdefs.IsNotFound},
		{"while it is read, and cut", func(_ context.Context, c *cutStore, _ digest.Digest) error {
			c.removed.Store(true)
			c.cut.Store(150_000)
			return nil
		}, errdefs.IsNotFound},
		{"while it is read", func(_ context.Context, c *cutStore, _ digest.Digest) error {
			c.removed.Store(true)
			return nil
		}, func(err error) bool { return err == nil }},
		{"cut, and still recorded", func(_ context.Context, c *cutStore, _ digest.Digest) error {
			c.cut.Store(150_000)
			return nil
		}, errdefs.IsDataLoss},
	} {
		t.Run(row.testName, func(t *testing.T) {
			w := start(t)
			store := &cutStore{Store: w.blobs.For(metadata.Containerd)}
			store.cut.Store(1 << 30)
			cs := contentproxy.NewContentStore(dial(t, plugin.New(&plugin.Options{Content: store})))
			blob := make([]byte, 300_000)
			d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
			put(t.Context(), t, cs, d, blob)
			ra, err := cs.ReaderAt(t.Context(), d)
			must(t, err)
			defer ra.Close()
			_, err = ra.ReadAt(blob[:100_000], 0)
			must(t, err)
			must(t, row.remove(t.Context(), store, d.Digest))
			if _, err = ra.ReadAt(blob[100_000:], 100_000); !row.want(err) {
				t.Errorf("second read: %v", err)
			}
		})
	}
}
