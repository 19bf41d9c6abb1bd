package repair

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// mendBlob gives a blob its bytes again.
func (r *Root) mendBlob(ctx context.Context, d digest.Digest) error {
	from, err := r.sources(d)
	if err != nil {
		return err
	}
	var desc ocispec.Descriptor
	if err := r.DB.View(func(tx *metadata.Tx) error {
		b, err := tx.Blob(d)
		desc.Digest, desc.Size = d, b.Size
		return err
	}); err != nil {
		return err
	}
	// The file may be right, and the record wrong.
	if r.adopt(ctx, d) {
		if faults, err := r.faultsOf(ctx, metadata.Fault{Node: metadata.BlobNode(d)}); err == nil && len(faults) == 0 {
			return nil
		}
	}
	return r.download(ctx, d, desc, from, func(metadata.Holder) error { return nil })
}

// adopt records a blob with the size of its file, if the file has the blob's digest and the record another size.
func (r *Root) adopt(ctx context.Context, d digest.Digest) bool {
	adopted := false
	err := r.Held(ctx, repairRef, func(h metadata.Holder) error {
		const ref = "repair"
		w, err := r.Content.For(h).Writer(ctx, content.WithRef(ref),
			content.WithDescriptor(ocispec.Descriptor{Digest: d}))
		if err != nil {
			adopted = errdefs.IsAlreadyExists(err)
			return nil
		}
		return errors.Join(w.Close(), r.Content.For(h).Abort(ctx, ref))
	})
	return err == nil && adopted
}

// repairRef stands for no image. Its holder keeps what a repair needs for a moment.
const repairRef = "localhost/tank/repair:latest"

// download fetches a blob from the first source that has it. It calls then while the blob is held.
func (r *Root) download(ctx context.Context, d digest.Digest, recorded ocispec.Descriptor, from []source,
	then func(metadata.Holder) error,
) error {
	switch {
	case len(from) == 0:
		return fmt.Errorf("no reference in this root names the blob %s: %w", d, errdefs.ErrNotFound)
	case r.Registries == nil:
		return fmt.Errorf("blob %s: only a registry has it, and this repair is offline: %w", d, errdefs.ErrUnavailable)
	}
	var errs []error
	for _, s := range from {
		desc := s.desc
		if desc.Size == 0 {
			desc.Size = recorded.Size
		}
		r.Log("downloading blob %s from %s", d, s.ref)
		err := r.Held(ctx, s.ref.String(), func(h metadata.Holder) error {
			err := r.Registries.Replace(ctx, r.Content.For(h), s.ref, desc, r.Progress)
			if err == nil || errdefs.IsAlreadyExists(err) {
				err = then(h)
			}
			return err
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mendLayer gives a layer or a fix-up a new directory. A layer whose blob is not here is unpacked from a registry's.
func (r *Root) mendLayer(ctx context.Context, key string) error {
	claimed, err := r.claimed(digest.Digest(key))
	if err != nil {
		return err
	}
	r.Log("unpacking layer %s again", key)
	err = r.Snapshots.Layers().Mend(ctx, key, claimed)
	if err == nil || layer.IsFixup(key) || !errdefs.IsDataLoss(err) {
		return err
	}
	for _, blob := range claimed {
		from, serr := r.sources(blob)
		if serr != nil {
			return serr
		}
		derr := r.download(ctx, blob, ocispec.Descriptor{}, from, func(metadata.Holder) error {
			return r.Snapshots.Layers().Mend(ctx, key, []digest.Digest{blob})
		})
		if derr == nil || ctx.Err() != nil {
			return derr
		}
		err = errors.Join(err, derr)
	}
	return err
}

// mendRootfs assembles a root file system again.
func (r *Root) mendRootfs(ctx context.Context, manifest digest.Digest) error {
	ref, p, err := r.platformOf(manifest)
	if err != nil {
		return err
	}
	r.Log("assembling rootfs %s again", manifest)
	layers := r.Snapshots.Layers()
	return r.Held(ctx, ref, func(h metadata.Holder) error {
		if err := layers.Doubt(metadata.RootfsNode(manifest)); err != nil {
			return err
		}
		recs := make([]metadata.Layer, len(p.Layers))
		g, unpacking := errgroup.WithContext(ctx)
		for i := range p.Layers {
			g.Go(func() (err error) {
				recs[i], err = r.unpack(unpacking, h, layer.Pair{Blob: p.Layers[i], DiffID: p.DiffIDs[i]})
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		_, err := layers.Assemble(ctx, h, manifest, recs, &layer.AssembleOptions{Consume: !r.KeepLayers})
		return err
	})
}

// unpack unpacks a layer for a holder. It downloads a blob that is not here.
func (r *Root) unpack(ctx context.Context, h metadata.Holder, l layer.Pair) (metadata.Layer, error) {
	rec, err := r.Snapshots.Layers().Unpack(ctx, h, l)
	if !errdefs.IsNotFound(err) || r.Registries == nil {
		return rec, err
	}
	from, serr := r.sources(l.Blob.Digest)
	if serr != nil {
		return rec, serr
	}
	for _, s := range from {
		if derr := r.Registries.Replace(ctx, r.Content.For(h), s.ref, l.Blob, r.Progress); derr != nil &&
			!errdefs.IsAlreadyExists(derr) {
			err = errors.Join(err, derr)
			continue
		}
		return r.Snapshots.Layers().Unpack(ctx, h, l)
	}
	return rec, err
}
