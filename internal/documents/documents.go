// Package documents reads the manifests and configs of recorded images.
//
// It owns nothing on disk. Its invariant: a document that it returns has only one reading (ADR 24). The surprising
// rule: the documents of an image that this version has recorded were checked then, and are not checked again to
// serve it.
package documents

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/catalog"
	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/metadata"
)

// Blobs is where the documents are.
type Blobs interface {
	content.Provider
	// Size returns the size of a blob in bytes and whether it is here.
	Size(d digest.Digest) (int64, bool)
}

// Readable returns the bytes of the config of a recorded platform. If an older version of Tank recorded the
// image, it checks its documents as a pull does, and returns errdefs.ErrDataLoss for a fault. This version
// has checked the documents that it recorded.
func Readable(ctx context.Context, from Blobs, rec metadata.Image, p metadata.Platform) (config []byte, err error) {
	if p.Exact {
		if config, err = content.ReadBlob(ctx, from, p.Config); err != nil {
			return nil, fmt.Errorf("config %s: %w", p.Config.Digest, err)
		}
		return config, nil
	}
	if config, err = Config(ctx, from, p.Config); err != nil {
		return nil, err
	}
	documents := []ocispec.Descriptor{p.Manifest}
	if images.IsIndexType(rec.Target.MediaType) {
		documents = append(documents, rec.Target)
	}
	for _, d := range documents {
		b, err := content.ReadBlob(ctx, from, d)
		if err == nil {
			_, err = imagejson.Read(d.MediaType, b)
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
	}
	return config, nil
}

// Config returns the bytes of a config. A config with more than one reading is errdefs.ErrDataLoss.
func Config(ctx context.Context, from Blobs, d ocispec.Descriptor) ([]byte, error) {
	b, err := content.ReadBlob(ctx, from, d)
	if err == nil {
		_, err = imagejson.ReadConfig(b)
	}
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", d.Digest, err)
	}
	return b, nil
}

// Check reports an image whose documents a pull would refuse, or whose record has a wrong size for a
// blob. The content store reports damaged blobs.
func Check(ctx context.Context, from Blobs, rec metadata.Image, report func(metadata.Fault)) error {
	unusable := func(err error) {
		report(metadata.Fault{
			Damage: metadata.UnusableDocument, Image: rec.Ref, Mend: metadata.MendDownload,
			Err: fmt.Errorf("image %s: %w", rec.Ref, err),
		})
	}
	for _, p := range rec.Platforms {
		if err := ctx.Err(); err != nil {
			return err
		}
		whole := true
		for _, d := range catalog.PlatformBlobs(rec.Target, p) {
			size, here := from.Size(d.Digest)
			if here && size != d.Size {
				unusable(fmt.Errorf("blob %s: recorded with %d bytes, has %d: %w",
					d.Digest, d.Size, size, errdefs.ErrDataLoss))
			}
			whole = whole && here && size == d.Size
		}
		if !whole {
			continue
		}
		p.Exact = false
		if _, err := Readable(ctx, from, rec, p); errdefs.IsDataLoss(err) {
			unusable(err)
		}
	}
	return nil
}
