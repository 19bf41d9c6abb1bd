package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Limits of a Connections.
const (
	maxRegistries   = 64
	forgetRegistry  = 5 * time.Minute // after its last use; by then its idle connections have been closed
	idleConnTimeout = 90 * time.Second
)

// Connections keeps idle connections for later requests, also of other clients that share it, so
// that a second pull needs no handshake. Two clients share the connections to a registry only if
// its hosts.toml and certificates, including client certificates, are the same for both.
// Credentials and tokens belong to requests and not to connections. The zero value has no
// connections and is ready to use.
type Connections struct {
	mu         sync.Mutex // guards registries
	registries []*registryTransports
}

// registryTransports are the transports to the hosts of one registry, as one hosts.toml describes
// them.
type registryTransports struct {
	key   string
	hosts []*Endpoint
	used  time.Time
}

// Close closes the idle connections. A connection that is in use is closed later, when it has been
// idle for a while or by another Close.
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

// fallsBackToHTTP reports whether the transport of a host uses HTTP if the host has no HTTPS, and
// remembers that. Such a transport is not shared, because another client may not allow HTTP.
func fallsBackToHTTP(e *Endpoint) bool { return e.direct.single }

// foundOnLoopback reports whether a registry may lead to this machine because it was found here.
// Its name, or that of a proxy, may resolve to another machine the next time, so its transports are
// not kept for other clients.
func foundOnLoopback(e *Endpoint) bool { return e.loopback.Load() }

// namedLoopback reports whether a host has a loopback name, which never resolves to another
// machine.
func namedLoopback(e *Endpoint) bool { return isLoopback(e.Host) }

// share replaces the transports of hosts by those of a registry with the same configuration. If
// there is none, it keeps the transports of hosts for later clients.
func (c *Connections) share(key string, hosts []*Endpoint) {
	if slices.ContainsFunc(hosts, fallsBackToHTTP) {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.registries = slices.DeleteFunc(c.registries, func(r *registryTransports) bool {
		return now.Sub(r.used) > forgetRegistry ||
			slices.ContainsFunc(r.hosts, foundOnLoopback) && !slices.ContainsFunc(r.hosts, namedLoopback)
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
	for i, e := range hosts { // without the authorizer, which belongs to the client
		kept[i] = &Endpoint{
			RegistryHost: e.RegistryHost, tls: e.tls, loopback: e.loopback, direct: e.direct, others: e.others,
		}
	}
	c.registries = append(c.registries, &registryTransports{key: key, hosts: kept, used: now})
}

func sameConnection(a, b *Endpoint) bool {
	return a.Scheme == b.Scheme && a.Host == b.Host && sameTLS(a.tls, b.tls)
}

// sameTLS compares the fields that hosts.toml and certificate files set.
func sameTLS(a, b *tls.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.InsecureSkipVerify == b.InsecureSkipVerify && a.RootCAs.Equal(b.RootCAs) &&
		slices.EqualFunc(a.Certificates, b.Certificates, func(a, b tls.Certificate) bool {
			return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
		})
}

// connectionsKey contains what the connections to a registry depend on, except hosts, authorities
// and certificates. It contains the content of hosts.toml because of the dial timeouts, which
// cannot be read from a transport.
func (c *Client) connectionsKey(name string, hosts []byte) string {
	return fmt.Sprintf("%s %t %d %d %x",
		name, c.opts.PlainHTTP, c.opts.StallTimeout, c.opts.PerHost, sha256.Sum256(hosts))
}

// transportSet is a set of transports that differ only in their connections. HTTP/2 sends all
// requests to a host over one connection, which may be slower than the network: because of its
// window, of lost packets, or because the server limits each connection. Requests with different
// numbers therefore use different transports. HTTP/1 opens connections as it needs them, so its
// requests always use the first transport, which has the idle ones.
type transportSet struct {
	first  http.RoundTripper
	base   *http.Transport // first, or what first wraps
	single bool            // first wraps base and cannot be copied

	mu    sync.Mutex        // guards the fields below
	more  []*http.Transport // the second and later transports
	http1 map[string]bool   // hosts that answered with HTTP/1
}

func newTransportSet(first http.RoundTripper, base *http.Transport) *transportSet {
	t, ok := first.(*http.Transport)
	return &transportSet{first: first, base: base, single: !ok || t != base, http1: map[string]bool{}}
}

// transport returns the transport number n, from 0, for requests to u.
func (s *transportSet) transport(u *url.URL, n int) http.RoundTripper {
	if n == 0 || s.single || u.Scheme == "http" {
		return s.first
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http1[u.Host] {
		return s.first
	}
	for len(s.more) < n {
		s.more = append(s.more, s.base.Clone())
	}
	return s.more[n-1]
}

// recordProtocol records with which protocol the host of u answered.
func (s *transportSet) recordProtocol(u *url.URL, resp *http.Response) {
	if u.Scheme == "http" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case resp.ProtoMajor >= 2:
		delete(s.http1, u.Host)
	case !s.http1[u.Host]:
		if len(s.http1) >= maxRegistries { // redirects may name any number of hosts
			clear(s.http1)
		}
		s.http1[u.Host] = true
	}
}

// closeIdleAfter closes the idle connections after a request failed with a temporary error. They
// may be dead as well, and each would cost an attempt.
func (s *transportSet) closeIdleAfter(ctx context.Context, err error) {
	if ctx.Err() == nil && retry.IsTemporary(err) {
		s.closeIdle()
	}
}

func (s *transportSet) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base.CloseIdleConnections()
	for _, t := range s.more {
		t.CloseIdleConnections()
	}
}
