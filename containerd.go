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

// ContainerdContent is the content store of a containerd that does not use the root's.
type ContainerdContent interface {
	// Open reads a blob with the rights of the call that ctx belongs to, or without a limit if it belongs
	// to none. The reader returns io.EOF only if the bytes match the digest. It returns errdefs.ErrNotFound
	// if there is no such blob.
	Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	// Size returns the size in bytes of a blob that containerd would adopt without fetching it;
	// errdefs.ErrNotFound for any other.
	Size(ctx context.Context, d digest.Digest) (int64, error)
	// Access returns errdefs.ErrNotFound unless the call that ctx belongs to may read the blob.
	Access(ctx context.Context, d digest.Digest) error
}

// layersFrom returns the store that layers are read from, and sets in opts what the snapshot store asks
// containerd.
func layersFrom(own *content.Store, containerd ContainerdContent, opts *snapshot.Options) layer.Blobs {
	if containerd == nil {
		return own
	}
	b := layerBlobs{own, containerd}
	opts.Access, opts.Adoptable = containerd.Access, b.adoptable
	return b
}

// layerBlobs reads layers from the root's blobs and downloads, then from containerd's.
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
	n, err := b.containerd.Size(context.Background(), d) // the call has a timeout of its own
	return n, err == nil
}

// adoptable reports whether containerd would adopt a blob without fetching it. It is true if containerd
// does not answer, so that containerd looks for the blob itself.
func (b layerBlobs) adoptable(ctx context.Context, d digest.Digest) bool {
	_, err := b.containerd.Size(ctx, d)
	return !errdefs.IsNotFound(err)
}
