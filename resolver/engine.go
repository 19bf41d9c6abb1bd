package resolver

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/panics"
)

// DownloadEvent tells how far the download of one blob is.
type DownloadEvent struct {
	Descriptor ocispec.Descriptor
	Offset     int64 // bytes that are here, resumed ones included
	Done       bool  // the blob is in the store
	Cached     bool  // it was there before; nothing was downloaded
}

// engineOptions configure an engine.
type engineOptions struct {
	// Ranges is how many parts of one blob are downloaded at once, and how many connections large blobs are spread over.
	Ranges int
	// ChunkSize is the size of such a part in bytes.
	ChunkSize int64
	// Divided begins with ranges, as if a blob before had been faster with them.
	Divided bool
	// Flights keeps concurrent engines from downloading the same blob twice. nil: the engine's own.
	Flights *Flights
	// Refresh downloads every blob again.
	Refresh bool
	// Progress is called often and by several goroutines at once. nil: nobody is told.
	Progress func(DownloadEvent)
}

// engine downloads blobs of one repository into a store.
type engine struct {
	opts    engineOptions
	repo    *repository
	store   content.Store
	flights *Flights
	buffers *buffers
	pace    *pace
}

func newEngine(repo *repository, store content.Store, opts engineOptions) *engine {
	e := &engine{opts: opts, repo: repo, store: store, flights: opts.Flights}
	e.buffers, e.pace = newBuffers(opts.Ranges, opts.ChunkSize), newPace(opts.Ranges, opts.ChunkSize)
	e.pace.pays = opts.Divided
	if e.flights == nil {
		e.flights = NewFlights()
	}
	return e
}

// stream writes the bytes of a blob, in order and each once, in one stream. They are not verified. A panic is an error.
func stream(ctx context.Context, repo *repository, desc ocispec.Descriptor, write func([]byte) error) (err error) {
	defer panics.Recover("blob "+desc.Digest.String(), &err)
	d := &download{repo: repo, desc: desc, write: write}
	return d.run(ctx)
}
