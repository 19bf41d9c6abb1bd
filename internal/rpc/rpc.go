// Package rpc is the gRPC server that all of Tank's sockets have in common.
//
// It owns nothing on disk. Its invariant: a panic in one call ends only that call, and no error message
// that reaches a client has control characters in it. Serve returns only after all calls have ended, so
// that its caller can close what the calls used.
//
// The surprising rule: one codec serves protocol buffers and JSON. A message that is neither a
// proto.Message nor a Marshaler is JSON, whatever content type the client asked for.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/tank-snapshotter/tank/internal/panics"
)

// drainTime is the default of Options.Drain.
const drainTime = 10 * time.Second

// Options of New. nil means the zero value.
type Options struct {
	// Drain is how long calls may go on after the context of Serve has ended. 0 means 10 seconds; a negative
	// value means no limit.
	Drain time.Duration
	// Check returns an error for a unary request that no handler must see. nil: all requests are accepted.
	Check func(req any) error
	// Server are further options of the gRPC server. nil: there are none.
	Server []grpc.ServerOption
}

// Server is a gRPC server that has the health and the reflection service. Other services must be registered
// before Serve is called.
type Server struct {
	*grpc.Server
	drain time.Duration
	check func(req any) error
	calls calls
	self  *self
}

// New makes a server. It does not listen yet.
func New(opts *Options) *Server {
	if opts == nil {
		opts = &Options{}
	}
	s := &Server{drain: opts.Drain, check: opts.Check, self: newSelf()}
	if s.drain == 0 {
		s.drain = drainTime
	}
	s.calls.idle.L = &s.calls.mu
	s.Server = grpc.NewServer(append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec{}),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}, opts.Server...)...)
	healthapi.RegisterHealthServer(s.Server, health.NewServer())
	reflection.Register(s.Server) // for grpcurl and the like
	return s
}

// Serve answers on the listeners until ctx ends and the running calls have ended. It closes the listeners.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	stop := context.AfterFunc(ctx, s.shutDown)
	defer stop()
	g, _ := errgroup.WithContext(ctx)
	for _, l := range append(slices.Clone(listeners), s.self) {
		g.Go(func() error {
			err := s.Server.Serve(l)
			if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				s.Stop()
				return fmt.Errorf("socket %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	err := g.Wait()
	s.calls.wait() // also for canceled calls, because the caller then closes what they use
	return err
}

// Abort cancels all calls and makes Serve return.
func (s *Server) Abort() { s.Stop() }

// Idle returns when no call runs. The server goes on answering.
func (s *Server) Idle() { s.calls.wait() }

// shutDown waits for the running calls, and cancels them when the time for that is over.
func (s *Server) shutDown() {
	if s.drain > 0 {
		force := time.AfterFunc(s.drain, s.Stop)
		defer force.Stop()
	}
	s.GracefulStop()
}

// calls counts the running calls.
type calls struct {
	mu   sync.Mutex // guards n
	n    int
	idle sync.Cond // signalled when n becomes 0
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
	defer panics.Recover(info.FullMethod, &err)
	if s.check != nil {
		if err := s.check(req); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo,
	next grpc.StreamHandler,
) (err error) {
	s.calls.begin()
	defer s.calls.end()
	defer escapeMessage(&err)
	defer panics.Recover(info.FullMethod, &err)
	return next(srv, stream)
}
