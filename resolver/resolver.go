// Package resolver turns a reference into verified blobs: it asks registries and writes what they answer into a content store.
//
// It owns nothing on disk. The store that Fetch writes to is the caller's, and so is the memory of what a tag once meant.
//
// Its invariant: no byte that a registry sent is believed. A manifest is what hashes to the digest that was asked for; when only a tag was
// asked for, the digest is computed from the bytes and what the headers claim can only contradict it. Content that fails verification, or
// that contradicts itself, is an error of class errdefs.ErrDataLoss, always.
//
// New opens no socket and reads no file: both wait for the first Resolve or Fetch, so that a program that stays offline stays so.
//
// The surprising rule: the client is not containerd's fetcher but only its host configuration and its authorizer. containerd's fetcher takes
// the digest of a tag from a header, asks for compressed transfer, believes a 206 without looking where it starts, and authorizes redirects.
package resolver

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits on what a registry may make us read into memory.
const (
	MaxManifestSize = 4 << 20 // bytes of one manifest or index
	MaxConfigSize   = 8 << 20 // bytes of an image config
	MaxNesting      = 4       // indexes inside one another
)

// Options configure a Resolver.
type Options struct {
	// PlainHTTP speaks HTTP with every registry that no hosts.toml describes. Zero value: only with localhost, 127.0.0.0/8 and [::1].
	PlainHTTP bool
	// HostsDir is a directory of <registry>/hosts.toml files and certificates as containerd has them in certs.d. Zero value: none is read.
	HostsDir string
	// UserAgent names the client. Zero value: "tank".
	UserAgent string
	// StallTimeout is how long a body may send nothing before the request is given up and resumed. Zero value: 30 seconds.
	StallTimeout time.Duration
	// Attempts bounds how often a request is tried while each try ends without a new byte. Zero value: 5.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles for each further one. Zero value: 200 milliseconds.
	Backoff time.Duration
}

// Resolver asks registries. It may be used by several goroutines; hosts, connections and tokens are shared by all of its calls.
type Resolver struct {
	opts Options

	mu    sync.Mutex
	hosts map[string][]docker.RegistryHost // by registry name, as hosts.toml describes them
	seen  map[digest.Digest]document       // what Resolve read and Fetch need not ask for again
}

// New makes a resolver. It opens nothing, and returns no error yet but for options out of range (errdefs.ErrInvalidArgument).
func New(opts *Options) (*Resolver, error) {
	r := &Resolver{hosts: map[string][]docker.RegistryHost{}, seen: map[digest.Digest]document{}}
	if opts != nil {
		r.opts = *opts
	}
	if r.opts.StallTimeout < 0 || r.opts.Attempts < 0 || r.opts.Backoff < 0 {
		return nil, fmt.Errorf("resolver options: negative limit: %w", errdefs.ErrInvalidArgument)
	}
	if r.opts.UserAgent == "" {
		r.opts.UserAgent = "tank"
	}
	if r.opts.StallTimeout == 0 {
		r.opts.StallTimeout = 30 * time.Second
	}
	if r.opts.Attempts == 0 {
		r.opts.Attempts = 5
	}
	if r.opts.Backoff == 0 {
		r.opts.Backoff = 200 * time.Millisecond
	}
	return r, nil
}

// Resolve asks the registry what ref stands for now: an index or a manifest. A reference with a digest is checked to exist and to hash to it.
//
// Classes: ErrNotFound (no such repository, tag or digest), ErrUnauthenticated and ErrPermissionDenied, ErrUnavailable (the network or the
// registry), ErrDataLoss (the answer fails verification), ErrInvalidArgument (a zero Reference or a hosts.toml that cannot be read).
func (r *Resolver) Resolve(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	if ref.named == nil {
		return ocispec.Descriptor{}, fmt.Errorf("reference \"\": empty: %w", errdefs.ErrInvalidArgument)
	}
	repo, err := r.repository(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	object := ref.Tag()
	if d := ref.Digest(); d != "" {
		object = d.String()
	}
	doc, err := repo.manifest(ctx, object, ref.Digest(), "")
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reference %s: %w", ref, err)
	}
	r.remember(doc)
	return doc.descriptor(), nil
}

// remembered bounds how many documents wait for a Fetch; a resolver that lives long must not grow.
const remembered = 16

func (r *Resolver) remember(doc document) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) >= remembered {
		clear(r.seen)
	}
	r.seen[doc.digest] = doc
}

func (r *Resolver) recall(d digest.Digest) (document, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	doc, ok := r.seen[d]
	return doc, ok
}

// repository finds the hosts of ref's registry, once for the life of the resolver: their clients keep connections, their authorizers tokens.
func (r *Resolver) repository(ctx context.Context, ref Reference) (*repository, error) {
	name := ref.Domain()
	r.mu.Lock()
	hosts, ok := r.hosts[name]
	r.mu.Unlock()
	if !ok {
		opts := config.HostOptions{}
		if r.opts.HostsDir != "" {
			opts.HostDir = config.HostDirFromRoot(r.opts.HostsDir)
		}
		if r.opts.PlainHTTP || isLoopback(name) {
			opts.DefaultScheme = "http"
		}
		var err error
		if hosts, err = config.ConfigureHosts(ctx, opts)(name); err != nil {
			return nil, fmt.Errorf("hosts of %s in %s: %v: %w", name, r.opts.HostsDir, err, errdefs.ErrInvalidArgument)
		}
		r.mu.Lock()
		if other, ok := r.hosts[name]; ok {
			hosts = other
		} else {
			r.hosts[name] = hosts
		}
		r.mu.Unlock()
	}
	return &repository{Resolver: r, registry: name, path: ref.Path(), hosts: hosts}, nil
}

// isLoopback says whether a registry name is this machine's own, so that HTTP is no risk.
func isLoopback(name string) bool {
	host := name
	if h, _, err := net.SplitHostPort(name); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
