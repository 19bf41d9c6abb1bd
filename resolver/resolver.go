// Package resolver turns a reference into verified blobs: it asks registries and writes what they
// answer into a content store.
//
// It owns nothing on disk. The store that Fetch writes to is the caller's, and so is the memory of
// what a tag once meant.
//
// Its invariant: no byte that a registry sent is believed. A manifest is what hashes to the digest
// that was asked for; when only a tag was asked for, the digest is computed from the bytes and what
// the headers claim can only contradict it. Content that fails verification, or that contradicts
// itself, is an error of class errdefs.ErrDataLoss, always.
//
// New opens no socket and reads no file: both wait for the first Resolve or Fetch, so that a
// program that stays offline stays so.
//
// The surprising rule: of containerd's client only the host configuration (hosts.toml) is used. Its
// fetcher takes the digest of a tag from a header, believes a 206 without looking where it starts,
// and waits for nobody's Retry-After; its authorizer sends credentials to whatever token server a
// registry names. docs/adr/0006-registry-client.md has the rules that are followed here.
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

// Limits on what a registry may make us read into memory.
const (
	MaxManifestSize = imagejson.MaxManifestSize // bytes of one manifest or index
	MaxConfigSize   = imagejson.MaxConfigSize   // bytes of an image config
	MaxNesting      = 4                         // indexes inside one another
	MaxIndexWidth   = exactjson.MaxObjects      // entries of one index
	maxDocuments    = 32                        // manifests and indexes that one Fetch looks at to find its platform
)

// Options configure a Resolver.
type Options struct {
	// PlainHTTP speaks HTTP with every registry that no hosts.toml describes. Zero value: only with
	// localhost, 127.0.0.0/8 and [::1].
	PlainHTTP bool
	// HostsDir is a directory of <registry>/hosts.toml files and certificates as containerd has
	// them in certs.d. Zero value: none is read.
	HostsDir string
	// UserAgent names the client. Zero value: "tank".
	UserAgent string
	// StallTimeout is how long a body may send nothing before the request is given up and resumed.
	// Zero value: 30 seconds.
	StallTimeout time.Duration
	// DocumentTimeout is how long a manifest, an index, a config or a token may take, with all
	// attempts and all hosts together. Zero value: 2 minutes.
	DocumentTimeout time.Duration
	// Attempts bounds how often a request is tried while each try ends without a new byte. Zero
	// value: 5.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles for each further one. Zero value:
	// 200 milliseconds.
	Backoff time.Duration
	// Credentials finds out who we are when a registry asks. Zero value: nobody, which is
	// anonymous.
	Credentials auth.Source
	// Warn gets each fault that a pull gets over once, such as a credential store that fails.
	// Several goroutines may call it at once. nil: faults are logged.
	Warn func(string)
	// Tokens keeps access tokens; share it to spare other pulls the handshake. Zero value: a cache
	// of the resolver's own.
	Tokens *TokenCache
	// Realms lists, by registry (docker.io, or host:port), the token servers (host or host:port)
	// that may be sent its credentials although they are of another site. Zero value: none but
	// those that are known.
	Realms map[string][]string
	// Ranges is how many parts of one large blob are downloaded at once where connections, and not
	// what they share, are the limit; and how many connections large blobs are spread over with
	// HTTP/2. Zero value: 4; 1 downloads every blob in one piece.
	Ranges int
	// ChunkSize is the size of such a part in bytes; blobs of up to four are not worth it. One
	// Fetch holds at most 16 MiB of parts in memory, or Ranges parts if that is more. Zero value: 2
	// MiB.
	ChunkSize int64
	// InFlight keeps concurrent fetches from downloading the same blob twice; share it among
	// resolvers that write to the same store. Zero value: the resolver's own.
	InFlight *InFlight
	// Connections keeps connections; share it to spare other pulls the handshake. Zero value: the
	// resolver's own, which its Close closes.
	Connections *Connections
	// Observe is told when the download of a blob begins and ends. nil: nothing is observed.
	Observe observe.Observer
}

// Resolver asks registries. It may be used by several goroutines; hosts, connections and tokens are
// shared by all of its calls.
type Resolver struct {
	opts     Options
	client   *registry.Client
	inFlight *InFlight
	divided  bool                                       // tests begin with ranges
	sleep    func(context.Context, time.Duration) error // tests don't wait

	mu   sync.Mutex
	seen map[digest.Digest]document // what Resolve read and Fetch need not ask for again
}

// New makes a resolver. It opens nothing, and returns no error yet but for options out of range
// (errdefs.ErrInvalidArgument).
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

func (r *Resolver) warn(ctx context.Context, text string) {
	if r.opts.Warn != nil {
		r.opts.Warn(text)
		return
	}
	log.G(ctx).Warn(text)
}

// Close closes the resolver's idle connections, unless they are those of Options. It may be used
// further.
func (r *Resolver) Close() { r.client.Close() }

// Resolve asks the registry what ref stands for now: an index or a manifest. A reference with a
// digest is checked to exist and to hash to it.
//
// Classes: ErrNotFound (no such repository, tag or digest), ErrUnauthenticated and
// ErrPermissionDenied, ErrUnavailable (the network or the registry), ErrDataLoss (the answer fails
// verification), ErrInvalidArgument (a zero Reference or a hosts.toml that cannot be read).
func (r *Resolver) Resolve(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	doc, err := r.resolve(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	r.remember(doc)
	return doc.descriptor(), nil
}

var errNoReference = fmt.Errorf("reference \"\": empty: %w", errdefs.ErrInvalidArgument)

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
		return document{}, fmt.Errorf("reference %s: %w", ref, refused(err, cause.Document))
	}
	return doc, nil
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

func (r *Resolver) repository(ctx context.Context, ref Reference) (*registry.Repository, error) {
	return r.client.Repository(ctx, ref.Domain(), ref.Path())
}

// refused gives an error about content a cause, unless a deeper one is known.
func refused(err error, kind cause.Kind) error {
	if errdefs.IsDataLoss(err) {
		return cause.Default(err, kind, "")
	}
	return err
}
