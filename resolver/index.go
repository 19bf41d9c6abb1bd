package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/mediatype"
)

// errPlatform says that everything is in order, but for other platforms than the one that was asked for.
var errPlatform = fmt.Errorf("no image for this platform: %w", errdefs.ErrNotFound)

// image finds the manifest for the platform at or below desc.
func (f *fetch) image(ctx context.Context, desc ocispec.Descriptor, depth int) (*Image, error) {
	if f.documents++; f.documents > maxDocuments {
		return nil, fmt.Errorf("index: more than %d documents were looked at: %w", maxDocuments, errdefs.ErrDataLoss)
	}
	doc, err := f.document(ctx, desc, depth > 0)
	if err != nil {
		return nil, err
	}
	if images.IsManifestType(doc.MediaType) {
		return f.manifest(ctx, doc)
	}
	if depth >= MaxNesting {
		return nil, fmt.Errorf("index %s: nested deeper than %d: %w", desc.Digest, MaxNesting, errdefs.ErrDataLoss)
	}
	f.indexes = append(f.indexes, doc.descriptor())
	if len(doc.Index.Manifests) > MaxIndexWidth {
		return nil, fmt.Errorf("index %s: %d entries are more than %d: %w",
			desc.Digest, len(doc.Index.Manifests), MaxIndexWidth, errdefs.ErrDataLoss)
	}
	mark := len(f.indexes)
	var artifact error
	for _, child := range f.candidates(doc.Index.Manifests) {
		image, err := f.image(ctx, child, depth+1)
		switch {
		case errors.Is(err, mediatype.ErrNotRootfs): // beside the image may lie what belongs to it
			artifact = err
		case !errdefs.IsNotFound(err) || !errors.Is(err, errPlatform):
			return image, err
		}
		f.indexes = f.indexes[:mark]
	}
	if err := mediatype.Index(doc.Index.Manifests); err != nil {
		artifact = err
	}
	if artifact != nil && !slices.ContainsFunc(doc.Index.Manifests, namesPlatform) {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, artifact)
	}
	return nil, fmt.Errorf("index %s: %w", desc.Digest, errPlatform)
}

// candidates are the entries of an index worth a look: those for the platform, the best first and equally good ones in the index's order, then
// those that name no platform. An attestation names the platform unknown/unknown, or says what it is; it is no image whoever asks.
func (f *fetch) candidates(all []ocispec.Descriptor) []ocispec.Descriptor {
	var named, unnamed []ocispec.Descriptor
	for _, d := range all {
		switch {
		case !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType):
		case d.Annotations["vnd.docker.reference.type"] != "":
		case d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "":
			unnamed = append(unnamed, d)
		case d.Platform.OS == "unknown":
		case f.platform.Match(*d.Platform):
			named = append(named, d)
		}
	}
	slices.SortStableFunc(named, func(a, b ocispec.Descriptor) int {
		switch {
		case f.platform.Less(*a.Platform, *b.Platform):
			return -1
		case f.platform.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return append(named, unnamed...)
}

// namesPlatform reports whether an entry of an index is an image for a platform.
func namesPlatform(d ocispec.Descriptor) bool {
	return d.Platform != nil && d.Platform.OS != "" && d.Platform.OS != "unknown"
}
