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
	// Disk returns a number that grows while the disk below the stores completes requests. Transfers,
	// Apply and Commit, and with Copies Prepare, may take longer than Limit while it grows. nil: the
	// disk is not looked at.
	Disk func() uint64
	// Copies says that a Prepare copies files (directory mode). false: it does not.
	Copies bool
	// Limit is how long a call of containerd may take before it is answered with
	// errdefs.ErrUnavailable, while it makes no progress in proportion to bytes. 0 means 4 seconds.
	Limit time.Duration
	// Drain is how long calls may go on after Serve was told to stop. 0 means 10 seconds, less than 0 forever.
	Drain time.Duration
}

// Server serves a root to containerd.
type Server struct {
	rpc    *rpc.Server
	fenced *fenced
}

// New makes a server. It does not listen yet.
func New(opts *Options) *Server {
	f := newFenced(opts)
	g := rpc.New(&rpc.Options{Drain: opts.Drain, Check: checkRequest, Server: []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(f.unary), grpc.ChainStreamInterceptor(f.stream),
		grpc.StatsHandler(connections{&f.ending}),
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
		f.snapshotter = snapshotter
		a := &announcer{Snapshotter: snapshotter, layers: opts.Layers, recent: recent}
		snapshotsapi.RegisterSnapshotsServer(g, snapshotservice.FromSnapshotter(a))
		// No comparer: containerd's own writes the layer where its records know of it. See docs/adr/0009.
		diffapi.RegisterDiffServer(g, diffservice.FromApplierAndComparer(&applier{opts.Applier, opts.Processors}, nil))
	}
	if opts.More != nil {
		opts.More(g)
	}
	return &Server{g, f}
}

// Answers returns nil if the server answers a call before ctx ends, and an error of class errdefs.ErrUnavailable
// otherwise. It needs no disk.
func (s *Server) Answers(ctx context.Context) error { return s.rpc.Answers(ctx) }

// Serve answers on the listeners until ctx ends, and then until the running calls have ended, or Options.Drain
// has passed. It closes the listeners. It returns when the work of all calls has ended, also of those that were
// answered before their end.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	err := s.rpc.Serve(ctx, listeners...)
	s.fenced.fence.Close()
	s.fenced.ending.Wait()
	return err
}
