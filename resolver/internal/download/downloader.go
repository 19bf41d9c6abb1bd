// Package download downloads blobs from a registry into a content store: resumed, in ranges, and each once.
//
// It owns nothing on disk; the store is the caller's. Its invariant: the bytes of a blob are written in order and each
// once, and the store's Commit verifies them. Bytes that turn out to be wrong are dropped and downloaded once more,
// from another host if there is one. The surprising rule: a blob begins as one stream; it is divided into ranges only
// where measurements show that the network limits each connection and not all of them together.
package download

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
)

// Event tells how far the download of one blob is.
type Event struct {
	Descriptor ocispec.Descriptor
	Offset     int64 // bytes that are here, resumed ones included
	Done       bool  // the blob is in the store
	Cached     bool  // it was there before; nothing was downloaded
}

// Options configure a Downloader.
type Options struct {
	// Ranges is how many parts of one blob are downloaded at once, and how many connections large blobs are spread over.
	Ranges int
	// ChunkSize is the size of such a part in bytes.
	ChunkSize int64
	// Divided begins with ranges, as if a blob before had been faster with them.
	Divided bool
	// InFlight keeps concurrent downloaders from downloading the same blob twice. nil: the downloader's own.
	InFlight *InFlight
	// Refresh downloads every blob again.
	Refresh bool
	// Progress is called often and by several goroutines at once. nil: nobody is told.
	Progress func(Event)
}

// Downloader downloads blobs of one repository into a store.
type Downloader struct {
	opts     Options
	repo     *registry.Repository
	store    content.Store
	inFlight *InFlight
	buffers  *buffers
	link     *linkState
}

// New makes a Downloader of one repository and one store.
func New(repo *registry.Repository, store content.Store, opts Options) *Downloader {
	e := &Downloader{opts: opts, repo: repo, store: store, inFlight: opts.InFlight}
	e.buffers, e.link = newBuffers(opts.Ranges, opts.ChunkSize), newLinkState(opts.Ranges, opts.ChunkSize)
	e.link.divided = opts.Divided
	if e.inFlight == nil {
		e.inFlight = NewInFlight()
	}
	return e
}

// Stream writes the bytes of a blob, in order and each once, in one stream. They are not verified. A panic is an error.
func Stream(ctx context.Context, repo *registry.Repository, desc ocispec.Descriptor, write func([]byte) error) (err error) {
	defer panics.Recover("blob "+desc.Digest.String(), &err)
	d := &download{repo: repo, desc: desc, write: write}
	return d.run(ctx)
}
