package tank

import (
	"slices"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

// record is the moment the pull happened: the image's record holds its closure, and the pull's holder is gone.
func (p *pull) record(target ocispec.Descriptor, indexes []ocispec.Descriptor, c metadata.Platform) error {
	ref := p.ref.String()
	c.Rootfs = !p.opts.NoRootfs
	if !p.want.Exactly(c.Platform) {
		c.RequestedAs = union(c.RequestedAs, []string{p.want.String()})
	}
	return p.t.db.Update(func(tx *metadata.Tx) error {
		now := time.Now().UTC()
		rec, err := tx.Image(ref)
		switch {
		case errdefs.IsNotFound(err):
			rec = metadata.Image{Ref: ref, Created: now}
		case err != nil:
			return err
		case rec.Target.Digest != target.Digest:
			if err := untag(tx, rec); err != nil {
				return err
			}
			rec = metadata.Image{Ref: ref, Created: now}
		}
		rec.Target, rec.Updated, rec.Untagged = target, now, false
		all := []metadata.Platform{c}
		for _, old := range rec.Platforms {
			if old.Manifest.Digest == c.Manifest.Digest {
				all[0].Rootfs = all[0].Rootfs || old.Rootfs
				all[0].RequestedAs = union(all[0].RequestedAs, old.RequestedAs)
			} else {
				all = append(all, old)
			}
		}
		rec.Platforms = all
		if err := tx.PutImage(rec); err != nil {
			return err
		}
		if err := p.holdClosure(tx, target, indexes, all[0]); err != nil {
			return err
		}
		return tx.EndPull(ref) // with what it gathered of other images, before the tag moved
	})
}

// holdClosure has the image hold what belongs to a platform: its blobs, its rootfs, and its layers where they are kept.
func (p *pull) holdClosure(tx *metadata.Tx, target ocispec.Descriptor, indexes []ocispec.Descriptor, c metadata.Platform) error {
	h := metadata.ImageHolder(p.ref.String())
	blobs := append([]ocispec.Descriptor{target, c.Manifest, c.Config}, c.Layers...)
	for _, d := range append(blobs, indexes...) {
		if err := tx.Hold(h, metadata.BlobNode(d.Digest)); err != nil {
			return err
		}
	}
	if c.Rootfs {
		if err := tx.Hold(h, metadata.RootfsNode(c.Manifest.Digest)); err != nil {
			return err
		}
	}
	for _, d := range c.DiffIDs {
		n := metadata.LayerNode(metadata.LayerKey(d))
		var err error
		switch {
		case c.Rootfs && !p.t.daemon && tx.Holds(h, n):
			err = tx.Release(h, n) // a rootfs takes their place
		case (!c.Rootfs || p.t.daemon) && tx.Holds(p.holder, n):
			err = tx.Hold(h, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// untag keeps an image that its tag has left under a name of its own, until gc: somebody may be using its rootfs.
func untag(tx *metadata.Tx, rec metadata.Image) error {
	old := rec.Ref
	rec.Ref, rec.Untagged = old+"@"+rec.Target.Digest.String(), true
	if before, err := tx.Image(rec.Ref); err == nil { // it was left before, and came back
		rec.Untagged = before.Untagged
		for _, p := range before.Platforms {
			if !slices.ContainsFunc(rec.Platforms, func(q metadata.Platform) bool { return q.Manifest.Digest == p.Manifest.Digest }) {
				rec.Platforms = append(rec.Platforms, p)
			}
		}
	}
	if err := tx.PutImage(rec); err != nil {
		return err
	}
	if err := tx.MoveHolds(metadata.ImageHolder(old), metadata.ImageHolder(rec.Ref)); err != nil {
		return err
	}
	return tx.DeleteImage(old)
}
