// Package download downloads blobs from a registry into a content store. It resumes interrupted
// downloads, divides large blobs into ranges, and downloads each blob only once at a time.
//
// It owns nothing on disk; the store belongs to the caller.
//
// Its invariant: the bytes of a blob are written in order and each byte once, and the store's
// Commit verifies the digest. Bytes that turn out to be wrong are dropped and downloaded once more,
// from another host if there is one.
//
// The surprising rule: a blob begins as one stream. It is divided into ranges only if measurements
// show that the network limits each connection, and not all connections together (ADR 14).
package download

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
)

// Event reports the progress of one blob.
type Event struct {
	Descriptor ocispec.Descriptor
	Offset     int64 // bytes in the store, including those of an earlier download
	Done       bool  // the blob is complete and verified
	Cached     bool  // the store had the blob before; nothing was downloaded
}

// Options configure a Downloader.
type Options struct {
	// Ranges is the number of ranges of one blob that are downloaded at the same time, and the
	// number of connections that large blobs of one host are spread over. With less than 2, every
	// blob is one stream.
	Ranges int
	// ChunkSize is the size of a range in bytes.
	ChunkSize int64
	// Divided begins with ranges, as if they had been faster for an earlier blob. false: a blob
	// begins as one stream.
	Divided bool
	// InFlight keeps several Downloaders from downloading the same blob at the same time. nil: one
	// for this Downloader.
	InFlight *InFlight
	// Refresh downloads every blob again, even if the store has it. false: blobs in the store are
	// used.
	Refresh bool
	// Progress receives the progress of all blobs. It is called often and by several goroutines at
	// once. nil: none.
	Progress func(Event)
	// Observe sees the beginning and the end of the download of each blob. nil: nothing is
	// observed.
	Observe observe.Observer
}

// Downloader downloads blobs of one repository into a store. It may be used by several goroutines
// at once.
type Downloader struct {
	opts     Options
	repo     *registry.Repository
	store    content.Store
	inFlight *InFlight
	buffers  *buffers // nil: every blob is one stream
	link     *linkState
}

// New makes a Downloader of one repository and one store.
func New(repo *registry.Repository, store content.Store, opts Options) *Downloader {
	d := &Downloader{opts: opts, repo: repo, store: store, inFlight: opts.InFlight}
	d.buffers, d.link = newBuffers(opts.Ranges, opts.ChunkSize), newLinkState(opts.Ranges, opts.ChunkSize)
	d.link.divided = opts.Divided
	if d.inFlight == nil {
		d.inFlight = NewInFlight()
	}
	return d
}

// Stream downloads a blob in one stream and passes its bytes to write, in order and each byte once.
// It does not verify the digest. It returns the error of write unchanged, and a panic as an error
// of class errdefs.ErrInternal.
func Stream(ctx context.Context, repo *registry.Repository, desc ocispec.Descriptor,
	write func([]byte) error,
) (err error) {
	defer panics.Recover("blob "+desc.Digest.String(), &err)
	t := &transfer{repo: repo, desc: desc, write: write}
	return t.run(ctx)
}
