package tank

import (
	"context"
	"fmt"

	"github.com/tank-snapshotter/tank/internal/catalog"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/metadata"
)

// readable returns the bytes of the config of a recorded platform. If an older version of Tank recorded the
// image, it checks its documents as a pull does, and returns errdefs.ErrDataLoss for a fault. This version
// has checked the documents that it recorded.
func (t *Tank) readable(ctx context.Context, rec metadata.Image, p metadata.Platform) (config []byte, err error) {
	if p.Exact {
		if config, err = content.ReadBlob(ctx, t.content, p.Config); err != nil {
			return nil, fmt.Errorf("config %s: %w", p.Config.Digest, err)
		}
		return config, nil
	}
	if config, err = t.config(ctx, p.Config); err != nil {
		return nil, err
	}
	documents := []ocispec.Descriptor{p.Manifest}
	if images.IsIndexType(rec.Target.MediaType) {
		documents = append(documents, rec.Target)
	}
	for _, d := range documents {
		b, err := content.ReadBlob(ctx, t.content, d)
		if err == nil {
			_, err = imagejson.Read(d.MediaType, b)
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
	}
	return config, nil
}

// config returns the bytes of a config. A config with more than one reading is errdefs.ErrDataLoss.
func (t *Tank) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	b, err := content.ReadBlob(ctx, t.content, d)
	if err == nil {
		_, err = imagejson.ReadConfig(b)
	}
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", d.Digest, err)
	}
	return b, nil
}

// checkImages reports each recorded image whose documents a pull would refuse, or whose record has a wrong
// size for a blob. The content store reports damaged blobs.
func (t *Tank) checkImages(ctx context.Context, report func(metadata.Fault)) error {
	recs, err := t.records()
	if err != nil {
		return err
	}
	for _, rec := range recs {
		for _, p := range rec.Platforms {
			if err := ctx.Err(); err != nil {
				return err
			}
			whole := true
			for _, d := range catalog.PlatformBlobs(rec.Target, p) {
				size, here := t.content.Size(d.Digest)
				if here && size != d.Size {
					report(metadata.Fault{
						Damage: metadata.UnusableDocument, Image: rec.Ref, Mend: metadata.MendDownload,
						Err: fmt.Errorf("image %s: blob %s: recorded with %d bytes, has %d: %w",
							rec.Ref, d.Digest, d.Size, size, errdefs.ErrDataLoss),
					})
				}
				whole = whole && here && size == d.Size
			}
			if !whole {
				continue
			}
			p.Exact = false
			if _, err := t.readable(ctx, rec, p); errdefs.IsDataLoss(err) {
				report(metadata.Fault{
					Damage: metadata.UnusableDocument, Image: rec.Ref, Mend: metadata.MendDownload,
					Err: fmt.Errorf("image %s: %w", rec.Ref, err),
				})
			}
		}
	}
	return nil
}
