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

// Image is one platform of what a reference stands for.
type Image struct {
	Ref         string             // normalized
	Target      ocispec.Descriptor // what the reference resolved to: an index or a manifest
	Manifest    ocispec.Descriptor
	Config      ocispec.Descriptor
	Layers      []ocispec.Descriptor // bottom first
	DiffIDs     []digest.Digest      // of the layers, claimed by the config and not verified here
	ConfigBytes []byte
	// Platform is what the index gives for the manifest. Without an index, it is what the config
	// says, completed by what was asked for.
	Platform ocispec.Platform
	// Warning is one sentence about a config that contradicts Platform or leaves it out. "": there
	// is nothing to report.
	Warning string
	Indexes []ocispec.Descriptor
	Fetched int // blobs that came from the registry: indexes, manifests, configs and layers that the store did not have
}

// Event tells how far the download of one blob is.
type Event = download.Event

// FetchOptions configure one Fetch.
type FetchOptions struct {
	// OnImage is called once, when manifest and config are known and before any layer is asked for.
	// An error ends the fetch. nil: nobody is told.
	OnImage func(*Image) error
	// Progress is called often and by several goroutines at once. nil: nobody is told.
	Progress func(Event)
	// Downloads bounds how many blobs are downloaded at once. Zero value: 8.
	Downloads int
	// Refresh downloads every blob again, manifests included, whatever the store has. What the
	// store has is only replaced by what was verified.
	Refresh bool
	// OnLayer is called after each layer is in the store, once for each blob, also when it was
	// there before; by several goroutines at once. An error ends the fetch. nil: nobody is told.
	OnLayer func(ocispec.Descriptor) error
}

// Fetch brings target, which Resolve answered for ref, into a store: the indexes on the way, the
// manifest of the platform, its config, then all of its layers at once. A blob that the store has
// is not asked for; an ingest that was interrupted goes on where it stopped. A nil platform means
// this machine's. Of an index, the entry that suits it best is taken, and the index decides what
// that entry is for, whatever its config says.
//
// Classes: those of Resolve; ErrNotFound, with a NoPlatform, also when no manifest is for the
// platform; and whatever the store answers with.
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
		return nil, fmt.Errorf("reference %s: %w", ref, refused(err, cause.Document))
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
		return nil, fmt.Errorf("reference %s: %w", ref, refused(err, cause.Digest))
	}
	return image, nil
}

// fetch is one call of Fetch. Its fields are written before the layers start and only read from
// then on.
type fetch struct {
	FetchOptions
	resolver *Resolver
	repo     *registry.Repository
	into     content.Store
	platform platform.Wanted
	blobs    *download.Downloader
	indexes  []ocispec.Descriptor
	fetched  int

	documents int // looked at
}

// manifest reads the config that a manifest names and makes an Image of both. said is the platform
// that an index gives for the manifest; nil if none does.
func (f *fetch) manifest(ctx context.Context, doc document, said *ocispec.Platform) (*Image, error) {
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
	p, warning, err := f.decide(doc.digest, config.Platform, said)
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

// isObject reports whether a document is a JSON object, which may have faults that only a stricter
// reader finds.
func isObject(data []byte) bool {
	return json.Valid(data) && bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

// decide returns the platform of a manifest, from its config and from what an index says, which
// counts. The error is a NoPlatform.
func (f *fetch) decide(manifest digest.Digest, config ocispec.Platform, said *ocispec.Platform) (
	p ocispec.Platform, warning string, err error,
) {
	switch {
	case said == nil && !f.platform.Allows(config):
		none := &NoPlatform{Document: manifest, Want: f.platform.String()}
		none.add(platform.Name(config))
		return p, "", none
	case said == nil:
		p = f.platform.Complete(config)
		if config.OS == "" || config.Architecture == "" {
			warning = fmt.Sprintf("manifest %s: its config names the platform %s: it is taken for %s, which was asked for",
				manifest, printable.Text(platform.Name(config)), printable.Text(platforms.FormatAll(p)))
		}
	default:
		if p = *said; p.OS == "" {
			p.OS = f.platform.Complete(p).OS
		}
		if platform.Contradicts(config, p) {
			warning = fmt.Sprintf("manifest %s: its config names the platform %s: it is taken for %s, as the index says",
				manifest, printable.Text(platform.Name(config)), printable.Text(platforms.FormatAll(p)))
		}
	}
	return p, warning, nil
}

// document returns the manifest or index desc: from the store, from what Resolve just read, or from
// the registry. Afterwards it is in the store. sized is false if a size of zero in desc means that
// the size is not known.
func (f *fetch) document(ctx context.Context, desc ocispec.Descriptor, sized bool) (doc document, err error) {
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 {
		return document{}, fmt.Errorf("descriptor %.100q: digest is not a sha256: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	if desc.Size > MaxManifestSize {
		return document{}, fmt.Errorf("manifest %s: larger than %d bytes: %w", desc.Digest, MaxManifestSize, errdefs.ErrDataLoss)
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
		return document{}, fmt.Errorf("manifest %s: %d bytes where %d were announced: %w",
			desc.Digest, size, desc.Size, errdefs.ErrDataLoss)
	}
	if desc.MediaType != "" && desc.MediaType != doc.MediaType {
		return document{}, fmt.Errorf("manifest %s: media type %.100q where %.100q was announced: %w",
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

// stored reads a small blob of the store and hashes it again: what is decided from it decides
// everything else.
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
		err := fmt.Errorf("blob %s: the stored bytes hash to something else: %w", d, errdefs.ErrDataLoss)
		return nil, cause.Mark(err, cause.Damaged, "")
	}
	return data, nil
}

// small brings a blob that fits into memory, such as a config, into the store and reads it.
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

// layers downloads every layer once, however often the manifest repeats it, and the largest first:
// the last one to come has nobody beside it. It returns how many were not there before.
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
	return slices.SortedStableFunc(slices.Values(layers), func(a, b ocispec.Descriptor) int { return cmp.Compare(b.Size, a.Size) })
}
