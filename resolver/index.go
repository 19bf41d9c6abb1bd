package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/internal/printable"
)

// maxNamed is the number of platforms that a NoPlatform lists.
const maxNamed = 16

// NoPlatform is the error for a valid image without a manifest for the requested platform. Its
// class is errdefs.ErrNotFound.
type NoPlatform struct {
	Document digest.Digest // the index or manifest
	Want     string        // the requested platform
	Has      []string      // platforms of the image; only the first ones of many
	More     int           // number of platforms that Has leaves out
}

func (e *NoPlatform) Error() string {
	has := "it has no image for any platform"
	if len(e.Has) > 0 {
		has = "it has " + strings.Join(e.Has, ", ")
	}
	if e.More > 0 {
		has += fmt.Sprintf(" and %d more", e.More)
	}
	return fmt.Sprintf("manifest %s: no image for %s: %s", e.Document, e.Want, has)
}

// Is makes errors.Is report the class errdefs.ErrNotFound.
func (e *NoPlatform) Is(target error) bool { return target == errdefs.ErrNotFound }

// Cause returns the cause. Package cause has advice for the user about it.
func (e *NoPlatform) Cause() cause.Cause { return cause.Cause{Kind: cause.Platform} }

// add adds a platform, unless it is listed.
func (e *NoPlatform) add(name string) {
	name = printable.Text(name)
	switch {
	case slices.Contains(e.Has, name):
	case len(e.Has) < maxNamed:
		e.Has = append(e.Has, name)
	default:
		e.More++
	}
}

// image finds the manifest for the platform in the document desc or in one below it, and makes an
// Image of it. fromIndex is the platform that an index states for desc, nil if none does. depth is
// the number of indexes above.
func (f *fetch) image(ctx context.Context, desc ocispec.Descriptor, fromIndex *ocispec.Platform, depth int) (
	*Image, error,
) {
	if f.documents++; f.documents > maxDocuments {
		return nil, fmt.Errorf("index: the platform was not found in %d documents: %w",
			maxDocuments, errdefs.ErrDataLoss)
	}
	doc, err := f.document(ctx, desc, depth > 0)
	if err != nil {
		return nil, err
	}
	if images.IsManifestType(doc.MediaType) {
		return f.manifest(ctx, doc, fromIndex)
	}
	if depth >= MaxNesting {
		return nil, fmt.Errorf("index %s: more than %d levels of nested indexes: %w",
			desc.Digest, MaxNesting, errdefs.ErrDataLoss)
	}
	f.indexes = append(f.indexes, doc.descriptor())
	if len(doc.Index.Manifests) > MaxIndexWidth {
		return nil, fmt.Errorf("index %s: has %d entries, at most %d are allowed: %w",
			desc.Digest, len(doc.Index.Manifests), MaxIndexWidth, errdefs.ErrDataLoss)
	}
	mark := len(f.indexes)
	var artifact error
	fit, others := f.candidates(doc.Index.Manifests)
	none := &NoPlatform{Document: desc.Digest, Want: f.platform.String()}
	for _, child := range fit {
		below := fromIndex
		if names(child) {
			below = child.Platform
		}
		image, err := f.image(ctx, child, below, depth+1)
		if errors.Is(err, mediatype.ErrNotRootfs) { // an artifact in the index, such as a signature
			artifact = err
			f.indexes = f.indexes[:mark]
			continue
		}
		var lacks *NoPlatform
		if !errors.As(err, &lacks) {
			return image, err
		}
		for _, name := range lacks.Has {
			none.add(name)
		}
		none.More += lacks.More
		f.indexes = f.indexes[:mark]
	}
	if err := mediatype.Index(doc.Index.Manifests); err != nil {
		artifact = err
	}
	for _, d := range others {
		none.add(platforms.FormatAll(*d.Platform))
	}
	if artifact != nil && len(none.Has) == 0 {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, artifact)
	}
	return nil, none
}

// names reports whether an entry of an index states a platform.
func names(d ocispec.Descriptor) bool {
	return d.Platform != nil && (d.Platform.OS != "" || d.Platform.Architecture != "")
}

// candidates returns the entries of an index that may have the image: those for the platform, the
// best first and equal ones in the order of the index, and then those that state no platform.
// others are the images for other platforms. Attestations are neither: they state the platform
// unknown/unknown, or their type.
func (f *fetch) candidates(all []ocispec.Descriptor) (fit, others []ocispec.Descriptor) {
	var named, unnamed []ocispec.Descriptor
	for _, d := range all {
		switch {
		case !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType):
		case d.Annotations["vnd.docker.reference.type"] != "":
		case !names(d):
			unnamed = append(unnamed, d)
		case d.Platform.OS == "unknown":
		case f.platform.Match(*d.Platform):
			named = append(named, d)
		default:
			others = append(others, d)
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
	return append(named, unnamed...), others
}
