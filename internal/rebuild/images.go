package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

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

// blobSet are the intact blobs and the rootfs from which images are recorded again.
type blobSet struct {
	root   string
	blobs  map[digest.Digest]metadata.Blob
	rootfs map[digest.Digest]metadata.Rootfs
}

func newBlobs(root string, blobs []metadata.Blob, rootfs map[digest.Digest]metadata.Rootfs) *blobSet {
	f := &blobSet{root, map[digest.Digest]metadata.Blob{}, rootfs}
	for _, b := range blobs {
		f.blobs[b.Digest] = b
	}
	return f
}

// image makes the record of an image from its blobs. It has the platforms of which the root has the
// manifest, the config and a part of the rest.
func (f *blobSet) image(ctx context.Context, d ocispec.Descriptor) (rec metadata.Image, ok bool) {
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
			doc := f.document(ctx, m)
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
			} else if p, ok := f.platform(ctx, m, doc.Manifest); ok {
				rec.Platforms = append(rec.Platforms, p)
			}
		}
		manifests = deeper
	}
	if len(rec.Platforms) == 0 {
		log.G(ctx).Warnf("rebuild: image %s is not whole", rec.Ref)
	}
	return rec, len(rec.Platforms) > 0
}

func (f *blobSet) platform(ctx context.Context, m ocispec.Descriptor,
	manifest *ocispec.Manifest,
) (p metadata.Platform, ok bool) {
	b, err := f.read(manifest.Config)
	if err != nil {
		return p, f.leaveOut(ctx, manifest.Config, err)
	}
	config, err := imagejson.ReadConfig(b)
	if err = cmp.Or(err, imagejson.Fetchable(manifest)); err == nil {
		err = imagejson.Pair(manifest, config)
	}
	if err != nil {
		return p, f.leaveOut(ctx, m, err)
	}
	_, rootfs := f.rootfs[m.Digest]
	pulled := rootfs || len(manifest.Layers) == 0
	for _, l := range manifest.Layers {
		b, here := f.blobs[l.Digest]
		if here && b.Size != l.Size {
			return p, false
		}
		pulled = pulled || here
	}
	if !pulled { // another platform of an index
		return p, false
	}
	said := config.Platform
	if m.Platform != nil { // an index decides
		said = *m.Platform
	}
	m.Annotations, m.Platform = nil, nil
	return metadata.Platform{
		Platform: platform.Of(platforms.DefaultSpec()).Complete(said), Manifest: m, Config: manifest.Config,
		Layers:  manifest.Layers,
		DiffIDs: config.RootFS.DiffIDs, Rootfs: rootfs, Exact: true,
	}, true
}

// document reads a manifest or an index; nil if it is not here or would be refused in a pull.
func (f *blobSet) document(ctx context.Context, d ocispec.Descriptor) *imagejson.Document {
	b, err := f.read(d)
	if err == nil {
		var doc *imagejson.Document
		if doc, err = imagejson.Read(d.MediaType, b); err == nil {
			return doc
		}
	}
	f.leaveOut(ctx, d, err)
	return nil
}

// leaveOut logs why an image is not recorded again, and returns false.
func (f *blobSet) leaveOut(ctx context.Context, d ocispec.Descriptor, err error) bool {
	if !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warnf("rebuild: blob %.100q", d.Digest)
	}
	return false
}

// read returns a blob that is here with the size that d gives it; errdefs.ErrNotFound when none is here.
func (f *blobSet) read(d ocispec.Descriptor) ([]byte, error) {
	b, here := f.blobs[d.Digest]
	if !here {
		return nil, fmt.Errorf("blob %.100q: %w", d.Digest, errdefs.ErrNotFound)
	}
	if b.Size != d.Size {
		return nil, fmt.Errorf("%d bytes where %d were announced: %w", b.Size, d.Size, errdefs.ErrDataLoss)
	}
	path := filepath.Join(f.root, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
	return regular.ReadFile(path, imagejson.MaxConfigSize)
}
