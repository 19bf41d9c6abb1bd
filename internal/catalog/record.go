package catalog

import (
	"slices"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

// Pulled is what a pull has brought into the root.
type Pulled struct {
	Ref      string // normalized
	Target   ocispec.Descriptor
	Indexes  []ocispec.Descriptor // between Target and the manifest
	Platform metadata.Platform
	// KeepLayers has the image hold the layers beside a rootfs, because a containerd may use them. false:
	// the rootfs takes their place.
	KeepLayers bool
}

// Record records a pulled platform, has the image hold what belongs to it, and ends the hold of the pull.
func Record(tx *metadata.Tx, p Pulled) error {
	now := time.Now().UTC()
	rec, err := tx.Image(p.Ref)
	switch {
	case errdefs.IsNotFound(err):
		rec = metadata.Image{Ref: p.Ref, Created: now}
	case err != nil:
		return err
	case rec.Target.Digest != p.Target.Digest:
		if err := untag(tx, rec); err != nil {
			return err
		}
		rec = metadata.Image{Ref: p.Ref, Created: now}
	}
	rec.Target, rec.Updated, rec.Untagged = p.Target, now, false
	all := []metadata.Platform{p.Platform}
	for _, old := range rec.Platforms {
		if old.Manifest.Digest == p.Platform.Manifest.Digest {
			all[0].Rootfs = all[0].Rootfs || old.Rootfs
			all[0].RequestedAs = union(all[0].RequestedAs, old.RequestedAs)
		} else {
			all = append(all, old)
		}
	}
	rec.Platforms, p.Platform = all, all[0]
	if err := tx.PutImage(rec); err != nil {
		return err
	}
	if err := p.hold(tx); err != nil {
		return err
	}
	return tx.EndPull(p.Ref) // also gives up what the pull has gathered of another image, before the tag moved
}

// hold has the image hold the blobs, the rootfs and the layers of the platform.
func (p *Pulled) hold(tx *metadata.Tx) error {
	h := metadata.ImageHolder(p.Ref)
	for _, d := range append(PlatformBlobs(p.Target, p.Platform), p.Indexes...) {
		if err := tx.Hold(h, metadata.BlobNode(d.Digest)); err != nil {
			return err
		}
	}
	if p.Platform.Rootfs {
		if err := tx.Hold(h, metadata.RootfsNode(p.Platform.Manifest.Digest)); err != nil {
			return err
		}
	}
	instead := p.Platform.Rootfs && !p.KeepLayers
	for _, d := range p.Platform.DiffIDs {
		n := metadata.LayerNode(metadata.LayerKey(d))
		var err error
		switch {
		case instead && tx.Holds(h, n):
			err = tx.Release(h, n)
		case !instead && tx.Holds(metadata.PullHolder(p.Ref), n):
			err = tx.Hold(h, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// untag keeps an image that its tag has left under a name of its own, until GC, because its rootfs may be
// in use.
func untag(tx *metadata.Tx, rec metadata.Image) error {
	old := rec.Ref
	rec.Ref, rec.Untagged = old+"@"+rec.Target.Digest.String(), true
	if before, err := tx.Image(rec.Ref); err == nil { // the tag has left it before, or it was pulled by this digest
		rec.Untagged = before.Untagged
		for _, p := range before.Platforms {
			if !slices.ContainsFunc(rec.Platforms, sameManifest(p)) {
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
