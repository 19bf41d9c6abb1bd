// Package imagejson reads the JSON documents of an image: manifests, indexes and configs.
//
// It owns nothing on disk.
//
// Its invariant: all decoders read an accepted document in the same way. Field names are compared exactly,
// and no name occurs twice. The document is either an index or a manifest, in agreement with its media type.
// Each digest has one size in it, and the sum of the sizes fits into an int64.
//
// The surprising rule: the media type from outside, in the header of a registry's response or in a descriptor, may be
// missing. If there is one, it has to be the one in the document, so that no two programs interpret the same bytes
// differently (CVE-2021-41190).
package imagejson

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/exactjson"
	"github.com/tank-snapshotter/tank/internal/mediatype"
)

// Limits on documents, in bytes.
const (
	MaxManifestSize = 4 << 20 // of a manifest or an index
	MaxConfigSize   = 8 << 20
)

// Document is a manifest or an index. Exactly one of the pointers is not nil.
type Document struct {
	MediaType string
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

// either has the fields of both kinds of documents, and the field by which schema 1 is recognized. So the
// name of a field of one kind can't appear in another spelling in a document of the other kind.
type either struct {
	ocispec.Manifest
	Manifests []ocispec.Descriptor `json:"manifests"`
	FSLayers  json.RawMessage      `json:"fsLayers"`
}

// parts has the members by which the kind of a document is recognized.
type parts struct {
	Manifests json.RawMessage `json:"manifests"`
	Layers    json.RawMessage `json:"layers"`
	Config    json.RawMessage `json:"config"`
}

// Read decodes a manifest or an index. claimed is the media type from outside the document, or "". If
// anything in the document is wrong, Read returns errdefs.ErrDataLoss. For a valid document that does not
// belong to an image that Tank can unpack, such as a manifest of Docker schema 1, it returns
// mediatype.ErrNotRootfs.
func Read(claimed string, data []byte) (*Document, error) {
	if len(data) > MaxManifestSize {
		return nil, fmt.Errorf("larger than %d bytes: %w", MaxManifestSize, errdefs.ErrDataLoss)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("not UTF-8: %w", errdefs.ErrDataLoss)
	}
	var e either
	if err := exactjson.Unmarshal(data, &e); err != nil {
		return nil, err
	}
	if e.SchemaVersion == 1 || e.FSLayers != nil || strings.Contains(claimed, "distribution.manifest.v1+") {
		return nil, mediatype.NotRootfs("application/vnd.docker.distribution.manifest.v1+json")
	}
	var has parts
	if err := json.Unmarshal(data, &has); err != nil {
		return nil, fmt.Errorf("not a manifest: %v: %w", err, errdefs.ErrDataLoss)
	}
	mediaType, err := agree(claimed, e.MediaType, has)
	if err != nil {
		return nil, err
	}
	if images.IsIndexType(mediaType) {
		index := &ocispec.Index{
			Versioned: e.Versioned, MediaType: e.MediaType, ArtifactType: e.ArtifactType, Manifests: e.Manifests,
			Subject: e.Subject, Annotations: e.Annotations,
		}
		return &Document{MediaType: mediaType, Index: index}, checkSizes(e.Manifests)
	}
	descriptors := append([]ocispec.Descriptor{e.Config}, e.Layers...)
	return &Document{MediaType: mediaType, Manifest: &e.Manifest}, checkSizes(descriptors)
}

// agree returns the media type of a document, after it has compared the claimed type, the type inside and the
// content.
func agree(claimed, inside string, has parts) (string, error) {
	t := inside
	switch {
	case t == "":
		t = claimed
	case claimed != "" && claimed != t:
		return "", fmt.Errorf("media type %.100q inside, %.100q outside: %w", t, claimed, errdefs.ErrDataLoss)
	}
	isIndex, isManifest := has.Manifests != nil, has.Layers != nil || has.Config != nil
	switch {
	case isIndex && isManifest:
		return "", fmt.Errorf("both an index and a manifest: %w", errdefs.ErrDataLoss)
	case t == "" && isIndex:
		return ocispec.MediaTypeImageIndex, nil
	case t == "" && isManifest:
		return ocispec.MediaTypeImageManifest, nil
	case images.IsIndexType(t) && !isManifest, images.IsManifestType(t) && isManifest:
		return t, nil
	case images.IsIndexType(t) || images.IsManifestType(t):
		return "", fmt.Errorf("media type %.100q does not fit the content: %w", t, errdefs.ErrDataLoss)
	}
	if mediatype.Kind(t) != "" {
		return "", mediatype.NotRootfs(t)
	}
	return "", fmt.Errorf("media type %.100q is neither an index nor a manifest: %w", t, errdefs.ErrDataLoss)
}

// checkSizes returns an error for negative sizes, two sizes of one digest, and a sum that does not fit into an int64.
func checkSizes(descriptors []ocispec.Descriptor) error {
	sizes := make(map[digest.Digest]int64, len(descriptors))
	sum := int64(0)
	for _, d := range descriptors {
		if d.Size < 0 || d.Size > math.MaxInt64-sum {
			return fmt.Errorf("descriptor %.100q: size %d is out of range: %w", d.Digest, d.Size, errdefs.ErrDataLoss)
		}
		sum += d.Size
		if other, ok := sizes[d.Digest]; ok && other != d.Size {
			return fmt.Errorf("descriptor %.100q: both %d and %d bytes: %w",
				d.Digest, other, d.Size, errdefs.ErrDataLoss)
		}
		sizes[d.Digest] = d.Size
	}
	return nil
}

// ReadConfig decodes the config of an image. It returns errdefs.ErrDataLoss if anything in it is wrong.
func ReadConfig(data []byte) (*ocispec.Image, error) {
	if len(data) > MaxConfigSize {
		return nil, fmt.Errorf("larger than %d bytes: %w", MaxConfigSize, errdefs.ErrDataLoss)
	}
	var config ocispec.Image
	if err := exactjson.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	return &config, nil
}

// IsConfig reports whether a document that ReadConfig has read is the config of an image, whatever its media
// type is. It is one if it lists layers.
func IsConfig(config *ocispec.Image) bool {
	return (config.RootFS.Type == "layers" || config.RootFS.Type == "") && len(config.RootFS.DiffIDs) > 0
}

// Fetchable returns errdefs.ErrDataLoss unless the digests of the manifest's config and layers use SHA-256, the only
// algorithm with which blobs are fetched.
func Fetchable(m *ocispec.Manifest) error {
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if !isSHA256(d.Digest) {
			return fmt.Errorf("descriptor %.100q of %d bytes is not valid: %w", d.Digest, d.Size, errdefs.ErrDataLoss)
		}
	}
	return nil
}

// Pair returns errdefs.ErrDataLoss unless the config has a SHA-256 diff ID for each layer of the manifest.
func Pair(m *ocispec.Manifest, config *ocispec.Image) error {
	ids := config.RootFS.DiffIDs
	if len(ids) != len(m.Layers) {
		return fmt.Errorf("%d layers, but %d diff IDs in config %.100q: %w",
			len(m.Layers), len(ids), m.Config.Digest, errdefs.ErrDataLoss)
	}
	for _, d := range ids {
		if !isSHA256(d) {
			return fmt.Errorf("diff ID %.100q is not valid: %w", d, errdefs.ErrDataLoss)
		}
	}
	return nil
}

func isSHA256(d digest.Digest) bool { return d.Validate() == nil && d.Algorithm() == digest.SHA256 }
