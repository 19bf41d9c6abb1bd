package plugin

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc/stats"
)

// containerds counts the connections on which containerd's services were called: each is a containerd that is there now. It is a
// stats.Handler of the server.
type containerds struct {
	mu sync.Mutex // guards n and every connection
	n  int
}

// connection is one connection of a client.
type connection struct {
	containerd, ended bool
}

type connectionKey struct{}

func (c *containerds) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionKey{}, &connection{})
}

func (c *containerds) HandleConn(ctx context.Context, s stats.ConnStats) {
	conn, ok := ctx.Value(connectionKey{}).(*connection)
	if _, end := s.(*stats.ConnEnd); !end || !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn.containerd && !conn.ended {
		c.n--
	}
	conn.ended = true
}

func (c *containerds) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	conn, ok := ctx.Value(connectionKey{}).(*connection)
	if !ok || !strings.HasPrefix(info.FullMethodName, "/containerd.services.") {
		return ctx
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !conn.containerd && !conn.ended {
		conn.containerd = true
		c.n++
	}
	return ctx
}

func (c *containerds) HandleRPC(context.Context, stats.RPCStats) {}

// Containerds returns how many connections are open on which containerd's services were called. containerd closes one that it did not use
// for half an hour, and opens it again when it needs it.
func (s *Server) Containerds() int {
	s.containerds.mu.Lock()
	defer s.containerds.mu.Unlock()
	return s.containerds.n
}
