package tank

import (
	"context"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// ContainerdContent is the content store of a containerd that keeps its own, beside the blobs of the root.
type ContainerdContent interface {
	// Open reads a blob on behalf of the call that ctx belongs to; of anybody's when it belongs to none. io.EOF says that the bytes
	// are those of the digest. errdefs.ErrNotFound when it is not there.
	Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	// Size returns the bytes of a blob that containerd takes into its records without fetching it; errdefs.ErrNotFound for others.
	Size(ctx context.Context, d digest.Digest) (int64, error)
	// Access returns errdefs.ErrNotFound unless the call that ctx belongs to may read the blob.
	Access(ctx context.Context, d digest.Digest) error
}

// layersFrom returns where layers are read from, and sets what the snapshot store has to ask containerd.
func layersFrom(own *content.Store, containerd ContainerdContent, opts *snapshot.Options) layer.Blobs {
	if containerd == nil {
		return own
	}
	b := layerBlobs{own, containerd}
	opts.Access, opts.Adoptable = containerd.Access, b.adoptable
	return b
}

// layerBlobs is where layers are read from: the root's own blobs and downloads, then containerd's.
type layerBlobs struct {
	own        *content.Store
	containerd ContainerdContent
}

func (b layerBlobs) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	r, err := b.own.Open(ctx, d)
	if errdefs.IsNotFound(err) {
		return b.containerd.Open(ctx, d)
	}
	return r, err
}

func (b layerBlobs) Size(d digest.Digest) (int64, bool) {
	if n, here := b.own.Size(d); here {
		return n, true
	}
	n, err := b.containerd.Size(context.Background(), d) // which bounds its time
	return n, err == nil
}

// adoptable reports whether containerd takes a blob without fetching it. If containerd does not answer, the result is
// true, so that containerd looks itself.
func (b layerBlobs) adoptable(ctx context.Context, d digest.Digest) bool {
	_, err := b.containerd.Size(ctx, d)
	return !errdefs.IsNotFound(err)
}
