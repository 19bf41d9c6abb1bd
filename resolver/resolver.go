// Package resolver turns a reference into the verified blobs of an image: it asks registries, and
// writes their answers into a content store.
//
// It owns nothing on disk. The caller owns the store that Fetch writes to, and remembers what a tag
// meant earlier.
//
// Its invariant: it trusts no byte that a registry sends. A manifest has to hash to the requested
// digest. If only a tag is known, the digest is computed from the bytes, and a header with another
// digest is an error. Content that fails verification or contradicts itself is an error of class
// errdefs.ErrDataLoss.
//
// New opens no socket and reads no file; the first Resolve or Fetch does.
//
// The surprising rule: of containerd's registry client, only the host configuration (hosts.toml) is
// used. containerd's fetcher takes the digest of a tag from a header, does not check where a 206
// begins, and ignores Retry-After; its authorizer sends credentials to any token server that a
// registry names. ADR 6 has the rules that Tank follows, ADR 38 the packages: auth and hostsdir for
// credentials and configuration, and below internal the client of registries and the downloads.
package resolver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/exactjson"
	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Limits of what a registry can make a process read into memory.
const (
	MaxManifestSize = imagejson.MaxManifestSize // bytes of one manifest or index
	MaxConfigSize   = imagejson.MaxConfigSize   // bytes of an image config
	MaxNesting      = 4                         // levels of nested indexes
	MaxIndexWidth   = exactjson.MaxObjects      // entries of one index
	maxDocuments    = 32                        // manifests and indexes that one Fetch reads to find its platform
)

// Options configure a Resolver.
type Options struct {
	// PlainHTTP uses HTTP for every registry that has no hosts.toml. false: only for localhost,
	// 127.0.0.0/8 and [::1].
	PlainHTTP bool
	// HostsDir is a directory with <registry>/hosts.toml files and certificates, like containerd's
	// certs.d. "": none is read.
	HostsDir string
	// UserAgent is sent with every request. "": "tank".
	UserAgent string
	// StallTimeout is how long a body may bring less than 1 KiB before its request is canceled and
	// resumed. 0: 30 seconds.
	StallTimeout time.Duration
	// DocumentTimeout bounds the download of a manifest, an index, a config or a token, including
	// all attempts and hosts. 0: 2 minutes.
	DocumentTimeout time.Duration
	// Attempts is the number of successive attempts without a new byte after which a request fails.
	// 0: 5.
	Attempts int
	// Backoff is the wait before the second attempt. It doubles for each further one. 0: 200
	// milliseconds.
	Backoff time.Duration
	// Credentials returns the credential for a registry that asks for one. nil: all requests are
	// anonymous.
	Credentials auth.Source
	// Warn receives, once each, the errors that do not end a pull, such as that of a credential store.
	// Several goroutines may call it at once. nil: such errors are logged.
	Warn func(string)
	// Tokens caches access tokens. Share it, so that later pulls need no new tokens. nil: a new
	// cache.
	Tokens *TokenCache
	// Realms lists, by registry (docker.io, or host:port), the token servers (host or host:port) of
	// other sites that may receive its credentials. nil: only the known ones, such as that of
	// Docker Hub.
	Realms map[string][]string
	// Ranges is the number of ranges of a large blob that are downloaded at once if the network
	// limits each connection, and not all of them together. Large blobs are spread over as many
	// HTTP/2 connections. 0: 4. 1: every blob is one stream.
	Ranges int
	// ChunkSize is the size of a range in bytes. A blob of up to four ranges is not divided. One
	// Fetch holds at most 16 MiB of ranges in memory, or Ranges of them if that is more. 0: 2 MiB.
	ChunkSize int64
	// InFlight keeps concurrent fetches from downloading the same blob at the same time. Share it
	// among resolvers that write to the same store. nil: one for this resolver.
	InFlight *InFlight
	// Connections keeps idle connections. Share it, so that later pulls need no handshake. nil: the
	// resolver keeps its own, and its Close closes them.
	Connections *Connections
	// Observe sees the beginning and the end of the download of each blob. nil: nothing is
	// observed.
	Observe observe.Observer
}

// Resolver asks registries. Several goroutines may use it at once; its calls share hosts,
// connections and tokens.
type Resolver struct {
	opts     Options
	client   *registry.Client
	inFlight *InFlight
	divided  bool                                       // tests begin with ranges
	sleep    func(context.Context, time.Duration) error // between attempts; tests replace it

	mu   sync.Mutex                 // guards seen
	seen map[digest.Digest]document // what Resolve has read, for Fetch
}

// New makes a Resolver. A nil opts means the defaults. It opens nothing. Class:
// errdefs.ErrInvalidArgument for a negative limit.
func New(opts *Options) (*Resolver, error) {
	r := &Resolver{seen: map[digest.Digest]document{}, sleep: retry.Sleep}
	if opts != nil {
		r.opts = *opts
	}
	if r.opts.StallTimeout < 0 || r.opts.DocumentTimeout < 0 || r.opts.Attempts < 0 ||
		r.opts.Backoff < 0 || r.opts.Ranges < 0 || r.opts.ChunkSize < 0 {
		return nil, fmt.Errorf("resolver options: negative limit: %w", errdefs.ErrInvalidArgument)
	}
	if r.opts.UserAgent == "" {
		r.opts.UserAgent = "tank"
	}
	if r.opts.StallTimeout == 0 {
		r.opts.StallTimeout = 30 * time.Second
	}
	if r.opts.DocumentTimeout == 0 {
		r.opts.DocumentTimeout = 2 * time.Minute
	}
	if r.opts.Attempts == 0 {
		r.opts.Attempts = 5
	}
	if r.opts.Backoff == 0 {
		r.opts.Backoff = 200 * time.Millisecond
	}
	if r.opts.Ranges == 0 {
		r.opts.Ranges = 4
	}
	if r.opts.ChunkSize == 0 {
		r.opts.ChunkSize = 2 << 20
	}
	if r.inFlight = r.opts.InFlight; r.inFlight == nil {
		r.inFlight = NewInFlight()
	}
	r.client = registry.New(registry.Options{
		PlainHTTP: r.opts.PlainHTTP, HostsDir: r.opts.HostsDir, UserAgent: r.opts.UserAgent,
		StallTimeout: r.opts.StallTimeout, DocumentTimeout: r.opts.DocumentTimeout,
		Retry: retry.Policy{
			Attempts: r.opts.Attempts, Backoff: r.opts.Backoff,
			Sleep: func(ctx context.Context, wait time.Duration) error { return r.sleep(ctx, wait) },
		},
		Credentials: r.opts.Credentials, Warn: r.warn, Tokens: r.opts.Tokens, Realms: r.opts.Realms,
		PerHost: r.opts.Ranges, Connections: r.opts.Connections,
	})
	return r, nil
}

// warn passes an error that does not end a pull to Options.Warn or to the log.
func (r *Resolver) warn(ctx context.Context, text string) {
	if r.opts.Warn != nil {
		r.opts.Warn(text)
		return
	}
	log.G(ctx).Warn(text)
}

// Close closes the idle connections, unless Options.Connections keeps them. The resolver remains
// usable.
func (r *Resolver) Close() { r.client.Close() }

// Resolve asks the registry for the index or manifest that ref names now. For a reference with a
// digest, it checks that the registry has it and that its bytes hash to the digest.
//
// Classes: errdefs.ErrNotFound (no such repository, tag or digest), ErrUnauthenticated and
// ErrPermissionDenied, ErrUnavailable (the network or the registry), ErrDataLoss (the answer fails
// verification), ErrInvalidArgument (the zero Reference, or a hosts.toml that cannot be used).
func (r *Resolver) Resolve(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	doc, err := r.resolve(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	r.remember(doc)
	return doc.descriptor(), nil
}

var errNoReference = fmt.Errorf("reference \"\": empty: %w", errdefs.ErrInvalidArgument)

// resolve asks the registry for the document that ref names.
func (r *Resolver) resolve(ctx context.Context, ref Reference) (document, error) {
	if ref.named == nil {
		return document{}, errNoReference
	}
	repo, err := r.repository(ctx, ref)
	if err != nil {
		return document{}, err
	}
	object := ref.Tag()
	if d := ref.Digest(); d != "" {
		object = d.String()
	}
	doc, err := manifest(ctx, repo, object, ref.Digest(), "")
	if err != nil {
		return document{}, fmt.Errorf("reference %s: %w", ref, withCause(err, cause.Document))
	}
	return doc, nil
}

// maxRecent bounds the documents that are kept for a Fetch.
const maxRecent = 16

// remember keeps a document that Resolve has read for a Fetch.
func (r *Resolver) remember(doc document) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) >= maxRecent {
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

func (r *Resolver) repository(ctx context.Context, ref Reference) (*registry.Repository, error) {
	return r.client.Repository(ctx, ref.Domain(), ref.Path())
}

// withCause gives an error about wrong content a cause, unless it has one.
func withCause(err error, kind cause.Kind) error {
	if errdefs.IsDataLoss(err) {
		return cause.Default(err, kind, "")
	}
	return err
}
