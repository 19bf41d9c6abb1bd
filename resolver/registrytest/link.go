package registrytest

import (
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"time"
)

// Link is the way from a registry to its clients. Give its Limit to NewPlain or NewTLS.
type Link struct {
	// PerConnection is how many bytes a second each connection brings; 0 is as many as it can.
	PerConnection int64
	// Total is how many bytes a second all connections together bring; 0 is as many as they can.
	Total int64

	opened atomic.Int64
	total  bucket
}

// Opened is how many connections were opened so far.
func (l *Link) Opened() int { return int(l.opened.Load()) }

// Limit puts the link before a server that has not started.
func (l *Link) Limit(s *httptest.Server) { s.Listener = linked{s.Listener, l} }

type linked struct {
	net.Listener
	link *Link
}

func (l linked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.link.opened.Add(1)
	return &limited{Conn: conn, link: l.link}, nil
}

type limited struct {
	net.Conn
	link *Link
	own  bucket
}

// piece is how much is sent at once.
const piece = 16 << 10

func (c *limited) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, piece)
		c.own.take(n, c.link.PerConnection)
		c.link.total.take(n, c.link.Total)
		n, err := c.Conn.Write(p[done : done+n])
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}

// bucket says when the next bytes may go.
type bucket struct {
	mu   sync.Mutex
	next time.Time
}

// take waits until n bytes fit into rate. What was not used is not saved up, but for the lateness
// of a sleep.
func (b *bucket) take(n int, rate int64) {
	if rate == 0 {
		return
	}
	const late = 100 * time.Millisecond
	b.mu.Lock()
	now := time.Now()
	if b.next.Before(now.Add(-late)) {
		b.next = now
	}
	b.next = b.next.Add(time.Duration(n) * time.Second / time.Duration(rate))
	wait := b.next.Sub(now)
	b.mu.Unlock()
	time.Sleep(wait)
}
