package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/internal/platform"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
)

// blobSet has the intact blobs and the rootfs from which images are recorded again.
type blobSet struct {
	root   string
	blobs  map[digest.Digest]metadata.Blob
	rootfs map[digest.Digest]metadata.Rootfs
}

func newBlobSet(root string, blobs []metadata.Blob, rootfs map[digest.Digest]metadata.Rootfs) *blobSet {
	s := &blobSet{root, map[digest.Digest]metadata.Blob{}, rootfs}
	for _, b := range blobs {
		s.blobs[b.Digest] = b
	}
	return s
}

// image makes the record of an image from its blobs. The record has each platform whose manifest and config
// are in the root, together with its rootfs or with one of its layers, if it has any. ok is false if there is
// no such platform, or if no pull can have recorded the reference.
func (s *blobSet) image(ctx context.Context, d ocispec.Descriptor) (rec metadata.Image, ok bool) {
	rec = metadata.Image{Ref: d.Annotations[ocispec.AnnotationRefName], Target: d, Created: time.Now().UTC()}
	rec.Updated = rec.Created
	rec.Target.Annotations, rec.Target.Platform = nil, nil
	if ref, err := resolver.ParseReference(rec.Ref); err != nil || ref.String() != rec.Ref {
		return rec, false // no pull recorded it
	}
	manifests := []ocispec.Descriptor{rec.Target}
	for depth := 0; len(manifests) > 0 && depth < 4; depth++ {
		var deeper []ocispec.Descriptor
		for _, m := range manifests {
			doc := s.document(ctx, m)
			if doc == nil {
				continue
			}
			if doc.Index != nil {
				for _, child := range doc.Index.Manifests {
					if child.Platform == nil {
						child.Platform = m.Platform
					}
					deeper = append(deeper, child)
				}
			} else if p, ok := s.platform(ctx, m, doc.Manifest); ok {
				rec.Platforms = append(rec.Platforms, p)
			}
		}
		manifests = deeper
	}
	if len(rec.Platforms) == 0 {
		log.G(ctx).Warnf("rebuild: image %s is incomplete", rec.Ref)
	}
	return rec, len(rec.Platforms) > 0
}

// indexes returns the indexes that are in the root and lie between the target of an image and its manifests.
func (s *blobSet) indexes(ctx context.Context, target ocispec.Descriptor) (found []digest.Digest) {
	level := []ocispec.Descriptor{target}
	for depth := 0; len(level) > 0 && depth < 4; depth++ {
		var deeper []ocispec.Descriptor
		for _, d := range level {
			if _, here := s.blobs[d.Digest]; !here || !images.IsIndexType(d.MediaType) {
				continue
			}
			found = append(found, d.Digest)
			if doc := s.document(ctx, d); doc != nil && doc.Index != nil {
				deeper = append(deeper, doc.Index.Manifests...)
			}
		}
		level = deeper
	}
	return found
}

// platform makes the record of one platform of an image.
func (s *blobSet) platform(ctx context.Context, m ocispec.Descriptor, manifest *ocispec.Manifest) (
	p metadata.Platform, ok bool,
) {
	b, err := s.read(manifest.Config)
	if err != nil {
		return p, s.leaveOut(ctx, manifest.Config, err)
	}
	config, err := imagejson.ReadConfig(b)
	if err = cmp.Or(err, imagejson.Fetchable(manifest)); err == nil {
		err = imagejson.Pair(manifest, config)
	}
	if err != nil {
		return p, s.leaveOut(ctx, m, err)
	}
	_, rootfs := s.rootfs[m.Digest]
	pulled := rootfs || len(manifest.Layers) == 0
	for _, l := range manifest.Layers {
		b, here := s.blobs[l.Digest]
		if here && b.Size != l.Size {
			return p, false
		}
		pulled = pulled || here
	}
	if !pulled { // an index lists the platform, and no pull fetched it
		return p, false
	}
	claimed := config.Platform
	if m.Platform != nil { // an index takes precedence
		claimed = *m.Platform
	}
	m.Annotations, m.Platform = nil, nil
	return metadata.Platform{
		Platform: platform.Of(platforms.DefaultSpec()).Complete(claimed), Manifest: m, Config: manifest.Config,
		Layers: manifest.Layers, DiffIDs: config.RootFS.DiffIDs, Rootfs: rootfs, Exact: true,
	}, true
}

// document reads a manifest or an index. It returns nil if the blob is missing, or if a pull would refuse it.
func (s *blobSet) document(ctx context.Context, d ocispec.Descriptor) *imagejson.Document {
	b, err := s.read(d)
	if err == nil {
		var doc *imagejson.Document
		if doc, err = imagejson.Read(d.MediaType, b); err == nil {
			return doc
		}
	}
	s.leaveOut(ctx, d, err)
	return nil
}

// leaveOut logs why a blob is not used, unless the blob is missing. It returns false.
func (s *blobSet) leaveOut(ctx context.Context, d ocispec.Descriptor, err error) bool {
	if !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warnf("rebuild: blob %.100q", d.Digest)
	}
	return false
}

// read returns the bytes of a blob. It returns errdefs.ErrNotFound if the blob is missing, and
// errdefs.ErrDataLoss if it has another size than d.
func (s *blobSet) read(d ocispec.Descriptor) ([]byte, error) {
	b, here := s.blobs[d.Digest]
	if !here {
		return nil, fmt.Errorf("blob %.100q: %w", d.Digest, errdefs.ErrNotFound)
	}
	if b.Size != d.Size {
		return nil, fmt.Errorf("%d bytes where %d were announced: %w", b.Size, d.Size, errdefs.ErrDataLoss)
	}
	path := filepath.Join(s.root, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
	return regular.ReadFile(path, imagejson.MaxConfigSize)
}
