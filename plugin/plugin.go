// Package plugin serves a root on sockets: to containerd its content, snapshots and diff services, as proxy plugins; to
// Tank's own commands the admin endpoint.
//
// It owns nothing on disk; the sockets are the caller's.
//
// Its invariant: a containerd sees only what it holds, because package binding chooses the store and the snapshotter of
// each call by the process at the other end of the connection. No call of containerd waits for the network, and a panic
// in one call ends that call alone.
//
// The surprising rule: layers are unpacked while containerd still downloads them. containerd names one layer at a time,
// so the first Prepare of a pull announces all of them, from the manifest that lies in the store by then.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/metadata"
)

// drainTime is how long calls may go on after Serve was told to stop.
const drainTime = 10 * time.Second

// Options of New: what is served. What is nil is not.
type Options struct {
	// Content is the blob store of every caller. Not with Binder.
	Content content.Store
	// Snapshotter is the snapshotter of every caller. Not with Binder.
	Snapshotter snapshots.Snapshotter
	// Binder decides for which holder each caller acts. nil: every caller gets the same stores.
	Binder *binding.Binder
	// StoresOf returns what a holder has; what it returns for metadata.Containerd decides what is served. Needed with
	// Binder.
	StoresOf func(metadata.Holder) Stores
	// Layers unpacks for Snapshotter.
	Layers Layers
	// Processors returns the stream processors that a containerd has configured, and errdefs.ErrUnavailable if they can't
	// be found out. nil: there are none.
	Processors func(ctx context.Context, containerd peer.Process) ([]processor.Processor, error)
	// Admin is the root, for Tank's own commands.
	Admin Admin
	// Drain is how long calls may go on after Serve was told to stop. 0 means 10 seconds, less than none means forever.
	Drain time.Duration
}

// Server serves a root.
type Server struct {
	grpc  *grpc.Server
	drain time.Duration
	calls calls
}

// New makes a server. It does not listen yet.
func New(opts *Options) *Server {
	s := &Server{drain: opts.Drain}
	s.calls.idle.L = &s.calls.mu
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(messages{}),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.StatsHandler(connections{}),
		grpc.Creds(newUnixCredentials()),
	)
	s.grpc = g
	if s.drain == 0 {
		s.drain = drainTime
	}
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
		diffapi.RegisterDiffServer(g, diffservice.FromApplierAndComparer(&applier{opts.Layers, opts.Processors}, nil))
	}
	if opts.Admin != nil {
		g.RegisterService(&adminService, opts.Admin)
	}
	healthapi.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g) // for grpcurl and the like
	return s
}

// Serve answers on the listeners until ctx ends, then lets calls that run come to their end. It closes the listeners.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	stop := context.AfterFunc(ctx, s.stop)
	defer stop()
	g, _ := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			err := s.grpc.Serve(l)
			if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				s.grpc.Stop()
				return fmt.Errorf("socket %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	err := g.Wait()
	s.calls.wait() // also for those that were cut off: what they work on is closed next
	return err
}

// Abort ends all calls and makes Serve return.
func (s *Server) Abort() { s.grpc.Stop() }

// Idle returns when no call runs. More are answered meanwhile.
func (s *Server) Idle() { s.calls.wait() }

func (s *Server) stop() {
	if s.drain > 0 {
		force := time.AfterFunc(s.drain, s.grpc.Stop)
		defer force.Stop()
	}
	s.grpc.GracefulStop()
}

// calls counts the calls that run.
type calls struct {
	mu   sync.Mutex // guards n
	n    int
	idle sync.Cond // signalled when n is 0
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 {
		c.idle.Broadcast()
	}
}

func (c *calls) wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.n > 0 {
		c.idle.Wait()
	}
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo,
	next grpc.UnaryHandler,
) (_ any, err error) {
	s.calls.begin()
	defer s.calls.end()
	defer escapeMessage(&err)
	defer contain(ctx, info.FullMethod, &err)
	if err := checkRequest(req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo,
	next grpc.StreamHandler,
) (err error) {
	s.calls.begin()
	defer s.calls.end()
	defer escapeMessage(&err)
	defer contain(stream.Context(), info.FullMethod, &err)
	return next(srv, stream)
}

// contain turns a panic into an error of the call.
func contain(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		log.G(ctx).WithField("method", method).Errorf("panic: %v\n%s", p, debug.Stack())
		*err = status.Errorf(codes.Internal, "%s: panic: %v", method, p)
	}
}
