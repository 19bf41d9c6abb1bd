// Package registry sends requests to registries. It keeps connections, follows redirects and
// authenticates.
//
// It owns nothing on disk.
//
// Its invariant: the secrets of a registry are sent to that registry only. Headers of hosts.toml,
// credentials, tokens and client certificates go to the host for which they are configured, and to
// no host that a redirect or a challenge names.
//
// The surprising rule: connections to such other hosts are checked when they are dialed, after the
// name was resolved. A registry on another machine thus cannot use this process to reach the
// loopback or a cloud's metadata service.
package registry

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Options configure a Client.
type Options struct {
	// PlainHTTP uses HTTP for every registry that has no hosts.toml. false: only for registries of
	// this machine.
	PlainHTTP bool
	// HostsDir is the directory of the hosts.toml files. "": none is read.
	HostsDir string
	// UserAgent is sent with every request.
	UserAgent string
	// StallTimeout is how long a body may bring less than 1 KiB.
	StallTimeout time.Duration
	// DocumentTimeout bounds the download of a manifest, a config or a token, including all
	// attempts and hosts.
	DocumentTimeout time.Duration
	// Retry bounds how often a request is repeated.
	Retry retry.Policy
	// Credentials finds the credential for a registry. nil: all requests are anonymous.
	Credentials auth.Source
	// Warn receives each error of Credentials once. Several goroutines may call it at once. It must
	// not be nil if Credentials is not.
	Warn func(ctx context.Context, text string)
	// Tokens caches access tokens. nil: a new cache.
	Tokens *TokenCache
	// Realms lists, by registry, the token servers of other sites that may receive its credentials.
	// nil: none.
	Realms map[string][]string
	// PerHost is the number of connections over which the large blobs of one HTTP/2 host are
	// spread.
	PerHost int
	// Connections keeps idle connections. nil: new ones, which Close closes.
	Connections *Connections
}

// Client sends requests to registries. Several goroutines may use it at once.
type Client struct {
	opts        Options
	tokens      *TokenCache
	credentials *auth.Cache
	connections *Connections

	mu    sync.Mutex             // guards hosts
	hosts map[string][]*Endpoint // by registry name
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

// Close closes the idle connections, unless Options.Connections keeps them. The client remains
// usable.
func (c *Client) Close() {
	if c.opts.Connections == nil {
		c.connections.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, hosts := range c.hosts {
		if slices.ContainsFunc(hosts, fallsBackToHTTP) { // their transports are not shared
			closeIdle(hosts)
		}
	}
}

// Repository returns a repository of a registry. It reads the registry's hosts.toml at the first
// call for the registry.
//
// Class: errdefs.ErrInvalidArgument if the hosts.toml or its certificates cannot be used.
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
