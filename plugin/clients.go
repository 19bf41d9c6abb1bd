package plugin

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/internal/peer"
)

// connection is one connection of a client, and the session of the process at its other end.
type connection struct {
	session atomic.Pointer[binding.Session] // nil until the first call of containerd's services

	mu    sync.Mutex // guards ended, and the making of session
	ended bool
}

type connectionKey struct{}

// sessionOf returns the session of the process that made the connection. It is determined at the first call
// that needs it and not at the connection, because containerd may connect before it opens its database.
func (c *connection) sessionOf(ctx context.Context, binder *binding.Binder) (*binding.Session, error) {
	if s := c.session.Load(); s != nil {
		return s, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.session.Load(); s != nil {
		return s, nil
	}
	if c.ended {
		return nil, context.Canceled
	}
	s, err := binder.Session(ctx, processOf(ctx))
	if err == nil {
		c.session.Store(s)
	}
	return s, err
}

// processOf returns the process that made the connection of a call, or the zero value if it is not known.
func processOf(ctx context.Context) peer.Process {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.process
		}
	}
	return peer.Process{}
}

func (c *connection) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.session.Load(); s != nil && !c.ended {
		s.End()
	}
	c.ended = true
}

// connections is a stats.Handler that attaches a connection value to each connection of the server.
type connections struct {
	ending *sync.WaitGroup // connections that ended, whose sessions do not know it yet
}

func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionKey{}, &connection{})
}

func (c connections) HandleConn(ctx context.Context, s stats.ConnStats) {
	conn, ok := ctx.Value(connectionKey{}).(*connection)
	if _, end := s.(*stats.ConnEnd); end && ok {
		// Not in the goroutine of the connection: the end of a session may wait for a transaction.
		c.ending.Go(conn.end)
	}
}

func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (connections) HandleRPC(context.Context, stats.RPCStats) {}

// peerInfo carries the process that made a connection to the calls on it.
type peerInfo struct {
	credentials.CommonAuthInfo
	process peer.Process
}

func (peerInfo) AuthType() string { return "unix" }

// unixCredentials are transport credentials that record which process made the connection. They encrypt
// nothing.
type unixCredentials struct {
	credentials.TransportCredentials
}

func newUnixCredentials() unixCredentials { return unixCredentials{insecure.NewCredentials()} }

func (c unixCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, peer.Of(conn)}, nil
}

func (c unixCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a server")
}

func (c unixCredentials) Clone() credentials.TransportCredentials { return c }
