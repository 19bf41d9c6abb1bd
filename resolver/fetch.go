package resolver

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/internal/platform"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/resolver/internal/download"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
)

// Image is an image for one platform.
type Image struct {
	Ref         string             // normalized
	Target      ocispec.Descriptor // the index or manifest that the reference names
	Manifest    ocispec.Descriptor
	Config      ocispec.Descriptor
	Layers      []ocispec.Descriptor // bottom first
	DiffIDs     []digest.Digest      // of the layers, as the config states them; not verified
	ConfigBytes []byte
	// Platform is the platform that the index states for the manifest. Without an index it is the
	// platform in the config, completed by the requested one.
	Platform ocispec.Platform
	// Warning is a sentence about a config that contradicts Platform or leaves it out, "" if there
	// is none.
	Warning string
	Indexes []ocispec.Descriptor // from the target down to the manifest
	Fetched int                  // number of blobs that were downloaded, including indexes, manifests and configs
}

// Event reports the progress of one blob.
type Event = download.Event

// FetchOptions configure one Fetch.
type FetchOptions struct {
	// OnImage is called once, when manifest and config are known and before the first layer is
	// requested. An error ends the fetch. nil: it is not called.
	OnImage func(*Image) error
	// Progress receives the progress of all blobs. It is called often and by several goroutines at
	// once. nil: it is not called.
	Progress func(Event)
	// Downloads is the number of blobs that are downloaded at once. 0: 8.
	Downloads int
	// Refresh downloads every blob again, including manifests, even if the store has it. The store
	// replaces a blob only by verified bytes. false: blobs in the store are used.
	Refresh bool
	// OnLayer is called once for each layer blob when the store has it, also if the store had it
	// before, and by several goroutines at once. An error ends the fetch. nil: it is not called.
	OnLayer func(ocispec.Descriptor) error
}

// Fetch downloads the image target, which Resolve returned for ref, into a store: the indexes, the
// manifest for the platform, its config, and then all layers at once. It does not request a blob
// that the store has, and resumes interrupted ingests. A nil platform is that of this machine. Of
// an index, Fetch takes the entry that suits the platform best; the platform that the index states
// takes precedence over the config.
//
// Classes: those of Resolve; errdefs.ErrNotFound, with a NoPlatform, also if no manifest is for the
// platform; and those of the store.
func (r *Resolver) Fetch(ctx context.Context, into content.Store, ref Reference, target ocispec.Descriptor,
	want *ocispec.Platform, opts *FetchOptions,
) (*Image, error) {
	if ref.named == nil {
		return nil, errNoReference
	}
	if want == nil {
		machine := platforms.DefaultSpec()
		want = &machine
	}
	f := &fetch{into: into, platform: platform.Of(*want), resolver: r}
	if opts != nil {
		f.FetchOptions = *opts
	}
	if f.Downloads <= 0 {
		f.Downloads = 8
	}
	var err error
	if f.repo, err = r.repository(ctx, ref); err != nil {
		return nil, err
	}
	f.blobs = download.New(f.repo, into, download.Options{
		Ranges: r.opts.Ranges, ChunkSize: r.opts.ChunkSize, Divided: r.divided,
		InFlight: r.inFlight, Refresh: f.Refresh, Progress: f.Progress,
		Observe: r.opts.Observe,
	})
	image, err := f.image(ctx, target, nil, 0)
	if err != nil {
		return nil, fmt.Errorf("reference %s: %w", ref, withCause(err, cause.Document))
	}
	image.Ref, image.Target = ref.String(), target
	image.Indexes, image.Fetched = f.indexes, f.fetched
	if f.OnImage != nil {
		if err := f.OnImage(image); err != nil {
			return nil, err
		}
	}
	n, err := f.layers(ctx, image.Layers)
	image.Fetched += n
	if err != nil {
		return nil, fmt.Errorf("reference %s: %w", ref, withCause(err, cause.Digest))
	}
	return image, nil
}

// fetch is one call of Fetch. The layers only read it.
type fetch struct {
	FetchOptions
	resolver *Resolver
	repo     *registry.Repository
	into     content.Store
	platform platform.Wanted
	blobs    *download.Downloader
	indexes  []ocispec.Descriptor
	fetched  int

	documents int // read so far
}

// manifest reads the config of a manifest and makes an Image of both. fromIndex is the platform
// that an index states for the manifest, nil if none does.
func (f *fetch) manifest(ctx context.Context, doc document, fromIndex *ocispec.Platform) (*Image, error) {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("manifest %s: %w: %w", doc.digest, fmt.Errorf(format, args...), errdefs.ErrDataLoss)
	}
	m := doc.Manifest
	if err := imagejson.Fetchable(m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", doc.digest, err)
	}
	if m.Config.Size > MaxConfigSize {
		return nil, fail("config of %d bytes is larger than %d", m.Config.Size, MaxConfigSize)
	}
	if err := mediatype.Manifest(m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", doc.digest, err)
	}
	data, err := f.small(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	config, err := imagejson.ReadConfig(data)
	generic := mediatype.Generic(m.Config.MediaType)
	if generic && (err == nil && !imagejson.IsConfig(config) || err != nil && !isObject(data)) {
		return nil, fmt.Errorf("manifest %s: %w", doc.digest, mediatype.Artifact(m))
	}
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	p, warning, err := f.decide(doc.digest, config.Platform, fromIndex)
	if err != nil {
		return nil, err
	}
	if err := imagejson.Pair(m, config); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", doc.digest, err)
	}
	return &Image{
		Manifest: doc.descriptor(), Config: download.Plain(m.Config), Layers: m.Layers,
		DiffIDs: config.RootFS.DiffIDs, ConfigBytes: data, Platform: p, Warning: warning,
	}, nil
}

// isObject reports whether data is a JSON object. ReadConfig may still refuse it.
func isObject(data []byte) bool {
	return json.Valid(data) && bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

// decide returns the platform of a manifest: the one that an index states, or that of the config,
// completed by the requested one. The error is a NoPlatform.
func (f *fetch) decide(manifest digest.Digest, config ocispec.Platform, fromIndex *ocispec.Platform) (
	p ocispec.Platform, warning string, err error,
) {
	switch {
	case fromIndex == nil && !f.platform.Allows(config):
		none := &NoPlatform{Document: manifest, Want: f.platform.String()}
		none.add(platform.Name(config))
		return p, "", none
	case fromIndex == nil:
		p = f.platform.Complete(config)
		if config.OS == "" || config.Architecture == "" {
			warning = fmt.Sprintf("manifest %s: its config names the platform %s: "+
				"it is taken for %s, which was asked for",
				manifest, printable.Text(platform.Name(config)),
				printable.Text(platforms.FormatAll(p)))
		}
	default:
		if p = *fromIndex; p.OS == "" {
			p.OS = f.platform.Complete(p).OS
		}
		if platform.Contradicts(config, p) {
			warning = fmt.Sprintf("manifest %s: its config names the platform %s: "+
				"it is taken for %s, as the index says",
				manifest, printable.Text(platform.Name(config)),
				printable.Text(platforms.FormatAll(p)))
		}
	}
	return p, warning, nil
}

// document returns the manifest or index desc: from the store, from Resolve, or from the registry.
// It is in the store afterwards. sized is false if a size of zero in desc means that the size is
// unknown.
func (f *fetch) document(ctx context.Context, desc ocispec.Descriptor, sized bool) (doc document, err error) {
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 {
		return document{}, fmt.Errorf("descriptor %.100q: digest is not a sha256: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	if desc.Size > MaxManifestSize {
		return document{}, fmt.Errorf("manifest %s: larger than %d bytes: %w",
			desc.Digest, MaxManifestSize, errdefs.ErrDataLoss)
	}
	here := false
	if !f.Refresh {
		doc, here, err = f.storedDocument(ctx, desc)
	}
	if !here && err == nil {
		var ok bool
		if doc, ok = f.resolver.recall(desc.Digest); !ok {
			doc, err = manifest(ctx, f.repo, desc.Digest.String(), desc.Digest, desc.MediaType)
		}
	}
	if err != nil {
		return document{}, err
	}
	if size := int64(len(doc.bytes)); size != desc.Size && (sized || desc.Size != 0) {
		return document{}, fmt.Errorf("manifest %s: has %d bytes, its descriptor states %d: %w",
			desc.Digest, size, desc.Size, errdefs.ErrDataLoss)
	}
	if desc.MediaType != "" && desc.MediaType != doc.MediaType {
		return document{}, fmt.Errorf("manifest %s: has the media type %.100q, its descriptor states %.100q: %w",
			desc.Digest, doc.MediaType, desc.MediaType, errdefs.ErrDataLoss)
	}
	if here {
		return doc, nil
	}
	f.fetched++
	return doc, f.blobs.Store(ctx, doc.descriptor(), doc.bytes)
}

// storedDocument returns the manifest or index desc from the store, and whether the store has it.
func (f *fetch) storedDocument(ctx context.Context, desc ocispec.Descriptor) (document, bool, error) {
	data, err := f.stored(ctx, desc.Digest)
	if errdefs.IsNotFound(err) {
		return document{}, false, nil
	}
	if err != nil {
		return document{}, false, err
	}
	doc := document{digest: desc.Digest, bytes: data}
	if doc.Document, err = imagejson.Read(desc.MediaType, data); err != nil {
		return document{}, false, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return doc, true, nil
}

// stored reads a small blob from the store and verifies its digest.
func (f *fetch) stored(ctx context.Context, d digest.Digest) ([]byte, error) {
	info, err := f.into.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	if info.Size > MaxConfigSize {
		return nil, fmt.Errorf("blob %s: larger than %d bytes: %w", d, MaxConfigSize, errdefs.ErrDataLoss)
	}
	data, err := content.ReadBlob(ctx, f.into, ocispec.Descriptor{Digest: d, Size: info.Size})
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	if digest.FromBytes(data) != d {
		err := fmt.Errorf("blob %s: the stored bytes have another digest: %w", d, errdefs.ErrDataLoss)
		return nil, cause.Mark(err, cause.Damaged, "")
	}
	return data, nil
}

// small downloads a small blob, such as a config, into the store and returns it.
func (f *fetch) small(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	fresh, err := f.blobs.Blob(ctx, desc, time.Now().Add(f.resolver.opts.DocumentTimeout))
	if err != nil {
		return nil, err
	}
	if fresh {
		f.fetched++
	}
	return f.stored(ctx, desc.Digest)
}

// layers downloads each layer blob once, even if the manifest has it repeatedly, the largest blobs
// first, because a large blob that comes last would be downloaded alone. It returns the number of
// blobs that the store did not have.
func (f *fetch) layers(ctx context.Context, layers []ocispec.Descriptor) (int, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(f.Downloads)
	fresh := make([]bool, len(layers))
	once := map[digest.Digest]bool{}
	for i, desc := range largestFirst(layers) {
		if once[desc.Digest] {
			continue
		}
		once[desc.Digest] = true
		group.Go(func() (err error) {
			defer panics.Recover("blob "+desc.Digest.String(), &err)
			if fresh[i], err = f.blobs.Blob(ctx, desc, time.Time{}); err != nil || f.OnLayer == nil {
				return err
			}
			return f.OnLayer(desc)
		})
	}
	err := group.Wait()
	n := 0
	for _, b := range fresh {
		if b {
			n++
		}
	}
	return n, err
}

func largestFirst(layers []ocispec.Descriptor) []ocispec.Descriptor {
	return slices.SortedStableFunc(slices.Values(layers), func(a, b ocispec.Descriptor) int {
		return cmp.Compare(b.Size, a.Size)
	})
}
