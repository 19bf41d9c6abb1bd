// Package plugin serves a root to containerd: its content, snapshots and diff services, as proxy plugins on
// unix sockets.
//
// It owns nothing on disk; the sockets are the caller's.
//
// Its invariant: a containerd sees only what it holds, because package binding chooses the store and the
// snapshotter of each call by the process at the other end of the connection. No call of containerd waits
// for the network, and a panic in one call ends that call alone.
//
// The surprising rule: layers are unpacked while containerd still downloads them. containerd names one
// layer at a time, so the first Prepare of a pull announces all of them, from the manifest that lies in the
// store by then.
package plugin

import (
	"context"
	"net"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/internal/rpc"
	"github.com/tank-snapshotter/tank/metadata"
)

// Options of New. A service whose store is nil is not served.
type Options struct {
	// Content is the blob store for all callers. It must be nil if there is a Binder.
	Content content.Store
	// Snapshotter is the snapshotter for all callers. It must be nil if there is a Binder.
	Snapshotter snapshots.Snapshotter
	// Binder decides for which holder each caller acts. nil: all callers get the same stores.
	Binder *binding.Binder
	// StoresOf returns the stores of a holder. Those of metadata.Containerd decide which services there
	// are. It is required with a Binder.
	StoresOf func(metadata.Holder) Stores
	// Layers unpacks layers for Snapshotter.
	Layers Layers
	// Applier applies layers to the snapshots of Snapshotter.
	Applier Applier
	// Processors returns the stream processors that a containerd has configured, and errdefs.ErrUnavailable
	// if its configuration cannot be read. nil: there are none.
	Processors func(ctx context.Context, containerd peer.Process) ([]processor.Processor, error)
	// More registers further services, such as the admin endpoint, which are then served on the same
	// sockets. nil: there are none.
	More func(grpc.ServiceRegistrar)
	// Drain is how long calls may go on after Serve was told to stop. 0 means 10 seconds, less than 0 forever.
	Drain time.Duration
}

// Server serves a root to containerd.
type Server struct{ rpc *rpc.Server }

// New makes a server. It does not listen yet.
func New(opts *Options) *Server {
	g := rpc.New(&rpc.Options{Drain: opts.Drain, Check: checkRequest, Server: []grpc.ServerOption{
		grpc.StatsHandler(connections{}),
		grpc.Creds(newUnixCredentials()),
	}})
	blobs, snapshotter := opts.Content, opts.Snapshotter
	holderOf := func(context.Context) metadata.Holder { return metadata.Containerd }
	if opts.Binder != nil {
		c := &callers{binder: opts.Binder, stores: opts.StoresOf}
		holderOf = c.holder
		served := c.storesOf(metadata.Containerd)
		if served.Content != nil {
			blobs = boundContent{c}
		}
		if served.Snapshotter != nil {
			snapshotter = boundSnapshots{c}
		}
	}
	var recent *recentBlobs
	if blobs != nil {
		recent = newRecentBlobs(blobs, holderOf)
		contentapi.RegisterContentServer(g, &contentServer{contentserver.New(recent), recent})
	}
	if snapshotter != nil {
		a := &announcer{Snapshotter: snapshotter, layers: opts.Layers, recent: recent}
		snapshotsapi.RegisterSnapshotsServer(g, snapshotservice.FromSnapshotter(a))
		// No comparer: containerd's own writes the layer where its records know of it. See docs/adr/0009.
		diffapi.RegisterDiffServer(g, diffservice.FromApplierAndComparer(&applier{opts.Applier, opts.Processors}, nil))
	}
	if opts.More != nil {
		opts.More(g)
	}
	return &Server{g}
}

// Serve answers on the listeners until ctx ends, and then until the running calls have ended, or Options.Drain
// has passed. It closes the listeners.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	return s.rpc.Serve(ctx, listeners...)
}
