package registrytest

import (
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"time"
)

// Link limits the network between a registry and its clients. Pass its method Limit to NewPlain or
// NewTLS.
type Link struct {
	// PerConnection is the rate of each connection, in bytes per second. 0: unlimited.
	PerConnection int64
	// Total is the rate of all connections together, in bytes per second. 0: unlimited.
	Total int64

	opened atomic.Int64
	total  bucket
}

// Opened returns the number of connections so far.
func (l *Link) Opened() int { return int(l.opened.Load()) }

// Limit puts the link in front of a server that has not started.
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

// piece is the number of bytes that are sent at once.
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

// bucket limits a rate.
type bucket struct {
	mu   sync.Mutex
	next time.Time
}

// take waits until n bytes may be sent. Unused capacity is not saved, except what a sleep that was
// too long has cost.
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
