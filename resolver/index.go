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

// maxNamed is how many platforms NoPlatform names.
const maxNamed = 16

// NoPlatform is the error for an image that is in order, but has no manifest for the platform that
// was asked for. Its class is errdefs.ErrNotFound.
type NoPlatform struct {
	Document digest.Digest // the index or manifest
	Want     string
	Has      []string // the platforms that it has; only the first of many
	More     int      // how many Has leaves out
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

// Is makes it one of errdefs.ErrNotFound.
func (e *NoPlatform) Is(target error) bool { return target == errdefs.ErrNotFound }

// Cause is what a user can do about it.
func (e *NoPlatform) Cause() cause.Cause { return cause.Cause{Kind: cause.Platform} }

// add names a platform once.
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

// image finds the manifest for the platform at or below desc. said is the platform that an index
// gives for it; nil if none does.
func (f *fetch) image(ctx context.Context, desc ocispec.Descriptor, said *ocispec.Platform, depth int) (*Image, error) {
	if f.documents++; f.documents > maxDocuments {
		return nil, fmt.Errorf("index: more than %d documents were looked at: %w", maxDocuments, errdefs.ErrDataLoss)
	}
	doc, err := f.document(ctx, desc, depth > 0)
	if err != nil {
		return nil, err
	}
	if images.IsManifestType(doc.MediaType) {
		return f.manifest(ctx, doc, said)
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
	fit, others := f.candidates(doc.Index.Manifests)
	none := &NoPlatform{Document: desc.Digest, Want: f.platform.String()}
	for _, child := range fit {
		below := said
		if names(child) {
			below = child.Platform
		}
		image, err := f.image(ctx, child, below, depth+1)
		if errors.Is(err, mediatype.ErrNotRootfs) { // beside the image may lie what belongs to it
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

// names reports whether an entry of an index names a platform.
func names(d ocispec.Descriptor) bool {
	return d.Platform != nil && (d.Platform.OS != "" || d.Platform.Architecture != "")
}

// candidates are the entries of an index worth a look: those for the platform, the best first and
// equally good ones in the index's order, then those that name no platform. others are the images
// for other platforms. An attestation names the platform unknown/unknown, or states its type; it is
// no image for any platform.
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
