package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Limits on what a Connections remembers.
const (
	maxRegistries   = 64
	forgetRegistry  = 5 * time.Minute // after its last use; its idle connections have ended long before
	idleConnTimeout = 90 * time.Second
)

// Connections keeps open connections for the next request, of another resolver too if it is shared: a pull after a pull needs no handshake. It is
// only shared among resolvers whose hosts.toml and certificates for a registry are the same; what belongs to a user, such as a token, is sent
// with each request and no matter of the connection, but for client certificates, which are compared. The zero value has none.
type Connections struct {
	mu         sync.Mutex
	registries []*registryTransports
}

// connected are the transports to the hosts of one registry as one hosts.toml describes them.
type registryTransports struct {
	key   string
	hosts []*Endpoint
	used  time.Time
}

// Close closes the connections that nobody uses. Those in use are closed when they have been idle for a while, or by another Close.
func (c *Connections) Close() {
	c.mu.Lock()
	registries := c.registries
	c.registries = nil
	c.mu.Unlock()
	for _, r := range registries {
		closeIdle(r.hosts)
	}
}

func closeIdle(hosts []*Endpoint) {
	for _, e := range hosts {
		e.direct.closeIdle()
		e.others.closeIdle()
	}
}

// fallsBack says whether a host may be talked to by HTTP where it has no HTTPS, which is remembered by its transport. Somebody else may not want that, so
// it is not shared.
func fallsBackToHTTP(e *Endpoint) bool { return e.direct.single }

// resolvedHere says whether a registry may lead to this machine because it was found on it. Where its name, or a proxy's, leads the next time is
// another matter, so that it is not kept for other pulls.
func foundOnLoopback(e *Endpoint) bool { return e.loopback.Load() }

// namedHere says whether a host is this machine by its name, whoever asks.
func namedLoopback(e *Endpoint) bool { return isLoopback(e.Host) }

// share gives hosts the transports of those that were configured alike, or keeps theirs for who comes later.
func (c *Connections) share(key string, hosts []*Endpoint) {
	if slices.ContainsFunc(hosts, fallsBackToHTTP) {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.registries = slices.DeleteFunc(c.registries, func(r *registryTransports) bool {
		return now.Sub(r.used) > forgetRegistry || slices.ContainsFunc(r.hosts, foundOnLoopback) && !slices.ContainsFunc(r.hosts, namedLoopback)
	})
	for _, r := range c.registries {
		if r.key == key && slices.EqualFunc(r.hosts, hosts, sameConnection) {
			r.used = now
			for i, e := range r.hosts {
				hosts[i].direct, hosts[i].others = e.direct, e.others
			}
			return
		}
	}
	if len(c.registries) == maxRegistries {
		c.registries = slices.Delete(c.registries, 0, 1)
	}
	kept := make([]*Endpoint, len(hosts))
	for i, e := range hosts { // without what is a resolver's own
		kept[i] = &Endpoint{RegistryHost: e.RegistryHost, tls: e.tls, loopback: e.loopback, direct: e.direct, others: e.others}
	}
	c.registries = append(c.registries, &registryTransports{key: key, hosts: kept, used: now})
}

func sameConnection(a, b *Endpoint) bool {
	return a.Scheme == b.Scheme && a.Host == b.Host && sameTLS(a.tls, b.tls)
}

// sameTLS compares what hosts.toml and certificate files can set.
func sameTLS(a, b *tls.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.InsecureSkipVerify == b.InsecureSkipVerify && a.RootCAs.Equal(b.RootCAs) &&
		slices.EqualFunc(a.Certificates, b.Certificates, func(a, b tls.Certificate) bool {
			return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
		})
}

// connectionsKey is what connections to a registry depend on beside hosts, roots and certificates.
// hosts is the content of hosts.toml, because it has dial timeouts that a transport does not expose.
func (c *Client) connectionsKey(name string, hosts []byte) string {
	return fmt.Sprintf("%s %t %d %d %x", name, c.opts.PlainHTTP, c.opts.StallTimeout, c.opts.PerHost, sha256.Sum256(hosts))
}

// lanes are transports that differ in nothing but their connections. HTTP/2 puts all requests to a host on one connection, which may be slower than
// the way: its window, what packets it loses, or what a server allows each connection. HTTP/1 has a connection for each request as it
// is, and stays in the first lane, where they find idle ones.
type transportSet struct {
	first  http.RoundTripper
	base   *http.Transport // at the bottom of first
	single bool            // first is more than base, so that there are no others

	mu    sync.Mutex
	more  []*http.Transport // from the second on
	http1 map[string]bool   // hosts that answered with it
}

func newTransportSet(first http.RoundTripper, base *http.Transport) *transportSet {
	t, ok := first.(*http.Transport)
	return &transportSet{first: first, base: base, single: !ok || t != base, http1: map[string]bool{}}
}

// lane is the transport number n, from 0, for u.
func (l *transportSet) transport(u *url.URL, n int) http.RoundTripper {
	if n == 0 || l.single || u.Scheme == "http" {
		return l.first
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.http1[u.Host] {
		return l.first
	}
	for len(l.more) < n {
		l.more = append(l.more, l.base.Clone())
	}
	return l.more[n-1]
}

// learn keeps in mind how u's host answered.
func (l *transportSet) recordProtocol(u *url.URL, resp *http.Response) {
	if u.Scheme == "http" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case resp.ProtoMajor >= 2:
		delete(l.http1, u.Host)
	case !l.http1[u.Host]:
		if len(l.http1) >= maxRegistries { // redirects may name as many as they like
			clear(l.http1)
		}
		l.http1[u.Host] = true
	}
}

// failed takes note of how a request got no answer. Idle connections as old as its own may be as dead, and each would cost an attempt.
func (l *transportSet) closeIdleAfter(ctx context.Context, err error) {
	if ctx.Err() == nil && retry.IsTemporary(err) {
		l.closeIdle()
	}
}

func (l *transportSet) closeIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base.CloseIdleConnections()
	for _, t := range l.more {
		t.CloseIdleConnections()
	}
}
