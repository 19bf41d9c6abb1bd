// Package registry sends requests to registries: connections, redirects and authentication.
//
// It owns nothing on disk. Its invariant: what belongs to one registry stays there. Headers of hosts.toml, credentials,
// tokens and client certificates are sent to the host that they are configured for, and to no other that a redirect or
// a challenge names. The surprising rule: the transport for other hosts checks addresses when it dials them, so that a
// registry on another machine cannot use this process to reach the loopback or a cloud's metadata service.
package registry

import (
	"context"
	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
	"slices"
	"sync"
	"time"
)

// Options configure a Client.
type Options struct {
	// PlainHTTP speaks HTTP with every registry that no hosts.toml describes. false: only with registries of this machine.
	PlainHTTP bool
	// HostsDir has the hosts.toml files. "": none is read.
	HostsDir string
	// UserAgent is sent with every request.
	UserAgent string
	// StallTimeout is how long a body may bring next to nothing.
	StallTimeout time.Duration
	// DocumentTimeout is how long a manifest, a config or a token may take.
	DocumentTimeout time.Duration
	// Retry says how often a request is repeated.
	Retry retry.Policy
	// Credentials finds the credential for a registry. nil: all requests are anonymous.
	Credentials auth.Source
	// Warn gets each fault of Credentials once. Several goroutines may call it at once.
	Warn func(ctx context.Context, text string)
	// Tokens keeps access tokens. nil: a cache of the client's own.
	Tokens *TokenCache
	// Realms lists, by registry, the token servers of another site that may be sent its credentials.
	Realms map[string][]string
	// PerHost is how many connections the large blobs of one HTTP/2 host are spread over.
	PerHost int
	// Connections keeps connections. nil: the client's own, which its Close closes.
	Connections *Connections
}

// Client sends requests to registries. Several goroutines may use it at once.
type Client struct {
	opts        Options
	tokens      *TokenCache
	credentials *auth.Cache
	connections *Connections

	mu    sync.Mutex
	hosts map[string][]*Endpoint // by registry name, as hosts.toml describes them
}

// New makes a client. It opens no connection.
func New(opts Options) *Client {
	c := &Client{opts: opts, hosts: map[string][]*Endpoint{}}
	if c.connections = opts.Connections; c.connections == nil {
		c.connections = new(Connections)
	}
	if c.tokens = opts.Tokens; c.tokens == nil {
		c.tokens = NewTokenCache()
	}
	c.credentials = auth.NewCache(opts.Credentials, opts.Warn)
	return c
}

// Close closes the idle connections, unless they are those of the options. The client may be used further.
func (c *Client) Close() {
	if c.opts.Connections == nil {
		c.connections.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, hosts := range c.hosts {
		if slices.ContainsFunc(hosts, fallsBackToHTTP) { // not kept by connections
			closeIdle(hosts)
		}
	}
}

// Repository finds the hosts of a registry, once for the life of the client: their transports keep connections.
func (c *Client) Repository(ctx context.Context, registry, path string) (*Repository, error) {
	c.mu.Lock()
	hosts, ok := c.hosts[registry]
	c.mu.Unlock()
	if !ok {
		var err error
		if hosts, err = c.endpoints(ctx, registry); err != nil {
			return nil, err
		}
		c.mu.Lock()
		if other, ok := c.hosts[registry]; ok {
			hosts = other
		} else {
			c.hosts[registry] = hosts
		}
		c.mu.Unlock()
	}
	return &Repository{client: c, Registry: registry, Path: path, Hosts: hosts}, nil
}
