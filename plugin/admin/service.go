package admin

import (
	"context"
	"net"
	"time"

	"github.com/tank-snapshotter/tank/internal/errclass"

	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/rpc"
	"github.com/tank-snapshotter/tank/internal/socket"
)

// ServeOptions of Serve and Register. nil means the zero value.
type ServeOptions struct {
	// HostsDir is the hosts directory for pulls of clients that have none. "": no hosts.toml is read for them.
	HostsDir string
	// Drain is how long calls may go on after Serve was told to stop. 0 means 10 seconds, less than 0 forever.
	// Register ignores it.
	Drain time.Duration
}

// Listen makes the socket in a root that this process owns, at which other programs look for the owner.
// Only this process's user can open it. It returns errdefs.ErrUnavailable if another process answers there.
func Listen(ctx context.Context, root string) (net.Listener, error) {
	l, err := socket.Listen(ctx, root, SocketName, nil)
	if err != nil {
		return nil, errclass.Ensure(err)
	}
	return l, nil
}

// Serve serves a root on a socket until ctx ends, and then until the running calls have ended. It closes
// the listener. opts may be nil. Anyone who can open the socket can use all of the service.
func Serve(ctx context.Context, l net.Listener, svc tank.Service, opts *ServeOptions) error {
	return newServer(svc, opts).Serve(ctx, l)
}

func newServer(svc tank.Service, opts *ServeOptions) *rpc.Server {
	if opts == nil {
		opts = &ServeOptions{}
	}
	s := rpc.New(&rpc.Options{Drain: opts.Drain})
	Register(s, svc, opts)
	return s
}

// Register adds the endpoint to a server of a daemon. opts may be nil.
func Register(to grpc.ServiceRegistrar, svc tank.Service, opts *ServeOptions) {
	if opts == nil {
		opts = &ServeOptions{}
	}
	to.RegisterService(&description, &endpoint{svc, opts.HostsDir, spoken})
}

// endpoint is the server's side of the protocol.
type endpoint struct {
	svc      tank.Service
	hostsDir string
	speaks   versions
}

// description describes the methods to gRPC. Check and Images answer with one message, because a root has
// at most thousands of faults and images.
var description = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		unary("Root", (*endpoint).root),
		unary("Images", func(e *endpoint, ctx context.Context, _ *empty) (any, error) { return e.svc.Images(ctx) }),
		unary("Inspect", func(e *endpoint, ctx context.Context, r *refRequest) (any, error) {
			return e.svc.Inspect(ctx, r.Ref)
		}),
		unary("Remove", func(e *endpoint, ctx context.Context, r *refRequest) (any, error) {
			return empty{}, e.svc.Remove(ctx, r.Ref)
		}),
		unary("GC", func(e *endpoint, ctx context.Context, _ *empty) (any, error) { return e.svc.GC(ctx) }),
		unary("Check", (*endpoint).check),
		unary("Holders", func(e *endpoint, ctx context.Context, _ *empty) (any, error) { return e.svc.Holders(ctx) }),
		unary("Release", func(e *endpoint, ctx context.Context, r *releaseRequest) (any, error) {
			return e.svc.Release(ctx, r.Holder, &r.ReleaseOptions)
		}),
	},
	Streams: []grpc.StreamDesc{
		{StreamName: "Pull", Handler: servePull, ServerStreams: true, ClientStreams: true},
		{StreamName: "Repair", Handler: serveRepair, ServerStreams: true, ClientStreams: true},
	},
}

// unary describes a method with one request and one answer.
func unary[Req any](name string, call func(*endpoint, context.Context, *Req) (any, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, dec func(any) error, via grpc.UnaryServerInterceptor) (any, error) {
			req := new(Req)
			if err := dec(req); err != nil {
				return nil, err
			}
			do := func(ctx context.Context, req any) (any, error) {
				v, err := call(srv.(*endpoint), ctx, req.(*Req))
				return v, toStatus(err)
			}
			if via == nil {
				return do(ctx, req)
			}
			return via(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + serviceName + "/" + name}, do)
		},
	}
}

// root agrees on a version of the protocol. It waits for nothing, so that a client can find out at any time
// that this process runs.
func (e *endpoint) root(_ context.Context, r *rootRequest) (any, error) {
	version, err := agree(r.versions(), e.speaks)
	return rootReply{Root: e.svc.Root(), Version: version}, err
}

func (e *endpoint) check(ctx context.Context, _ *empty) (any, error) {
	var faults []tank.Fault
	err := e.svc.Check(ctx, func(f tank.Fault) { faults = append(faults, f) })
	return faults, err
}
