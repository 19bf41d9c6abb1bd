package tank

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

	"github.com/tank-snapshotter/tank/internal/catalog"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/documents"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/ocilayout"
	"github.com/tank-snapshotter/tank/internal/reserve"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/snapshot"
)

func (t *Tank) records() (images []metadata.Image, err error) {
	err = t.db.View(func(tx *metadata.Tx) error {
		images, err = tx.Images("", -1)
		return err
	})
	return images, err
}

// writeLayout writes the copy of the images' records, from which a rebuild takes them, and the root's image layout.
func (t *Tank) writeLayout() error {
	if err := t.copies.UpdateImages(); err != nil {
		return err
	}
	return t.layout.Write(func() ([]ocilayout.Image, error) {
		records, err := t.records()
		images := make([]ocilayout.Image, len(records))
		for i, rec := range records {
			images[i] = ocilayout.Image{Ref: rec.Ref, Target: rec.Target}
		}
		return images, err
	})
}

// Images lists the pulled images; see [Service].
func (t *Tank) Images(context.Context) ([]ImageInfo, error) {
	images, err := t.records()
	if err != nil {
		return nil, err
	}
	var infos []ImageInfo
	for _, i := range images {
		for _, p := range i.Platforms {
			infos = append(infos, ImageInfo{
				Ref: i.Ref, Digest: i.Target.Digest,
				Manifest: p.Manifest.Digest, Platform: platforms.Format(p.Platform),
				Untagged: i.Untagged, Created: i.Created, Size: catalog.Size(p), Rootfs: t.rootfsOf(p),
			})
		}
	}
	return infos, nil
}

// Inspect returns all that is recorded of an image; see [Service].
func (t *Tank) Inspect(ctx context.Context, ref string) (*ImageDetails, error) {
	parsed, err := resolver.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	var rec catalog.Entry
	if err := t.db.View(func(tx *metadata.Tx) error {
		rec, err = catalog.Find(tx, parsed)
		return err
	}); err != nil {
		return nil, unknownImage(err)
	}
	d := &ImageDetails{
		Ref: rec.Ref, Target: rec.Target, Untagged: rec.Untagged, Created: rec.Created, Updated: rec.Updated,
	}
	for _, p := range rec.Platforms {
		config, err := documents.Config(ctx, t.content, p.Config)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", rec.Ref, err)
		}
		d.Platforms = append(d.Platforms, PlatformDetails{
			Platform: platforms.Format(p.Platform), Manifest: p.Manifest, Layers: p.Layers, DiffIDs: p.DiffIDs,
			Rootfs: t.rootfsOf(p), Config: config,
		})
	}
	return d, nil
}

// rootfsOf returns the path of the rootfs of a platform; "" if none was assembled.
func (t *Tank) rootfsOf(p metadata.Platform) string {
	if !p.Rootfs {
		return ""
	}
	return filepath.Join(t.root, "rootfs", p.Manifest.Digest.Algorithm().String(), p.Manifest.Digest.Encoded())
}

// Remove removes the record of an image; see [Service].
func (t *Tank) Remove(_ context.Context, ref string) error {
	parsed, err := resolver.ParseReference(ref)
	if err != nil {
		return err
	}
	name := parsed.String()
	t.images.Lock()
	defer t.images.Unlock()
	defer t.reserve.Restore()
	err = t.spendUpdate(func(tx *metadata.Tx) error {
		t.mu.Lock()
		running := t.pulls[name]
		t.mu.Unlock()
		err := tx.DeleteImage(name)
		if running || (err != nil && !errdefs.IsNotFound(err)) {
			return err
		}
		pulls, perr := tx.Pulls()
		if perr != nil {
			return perr
		}
		for _, p := range pulls {
			if p.Ref == name {
				return tx.EndPull(name)
			}
		}
		if err != nil {
			err = cmp.Or(catalog.Elsewhere(tx, parsed), err)
		}
		return err
	})
	if err != nil {
		return unknownImage(err)
	}
	if err := t.reserve.Spend(t.writeLayout); !reserve.Full(err) {
		return err
	}
	return nil // GC writes index.json; until then it names blobs that stay
}

// unknownImage gives an error about a missing record of an image its cause.
func unknownImage(err error) error {
	if errdefs.IsNotFound(err) {
		return cause.Mark(err, cause.Image, "")
	}
	return err
}

// GC deletes what nothing holds; see [Service].
func (t *Tank) GC(ctx context.Context) (Reclaimed, error) {
	counted := t.countFreed()
	r, err := t.collect(ctx)
	r.Bytes = counted()
	if err != nil {
		return r, err
	}
	r.Unfinished, err = t.unfinished(ctx)
	return r, err
}

func (t *Tank) collect(ctx context.Context) (Reclaimed, error) {
	var r Reclaimed
	t.images.Lock()
	defer t.images.Unlock()
	defer func() {
		if r.Blobs+r.Ingests+r.Layers+r.Rootfs+r.Snapshots > 0 {
			t.reserve.KeepAfter()
		}
		t.reserve.Keep()
	}()
	err := t.lapse(&r)
	if reserve.Full(err) { // there is no reserve: first delete what nothing holds
		err = errors.Join(t.sweep(ctx, &r), t.lapse(&r))
	}
	if err != nil {
		return r, err
	}
	err = t.reserve.Spend(t.writeLayout) // before the blobs that it names are deleted
	if err != nil && !reserve.Full(err) {
		return r, err
	}
	swept := t.sweep(ctx, &r)
	if err != nil {
		if err = t.reserve.Retry(t.writeLayout); reserve.Full(err) {
			log.G(ctx).WithError(err).Warn("full disk: index.json still names images that are gone")
			err = nil
		}
	}
	return r, errors.Join(swept, err)
}

// lapse ends the holds of images that their tags have left, and of pulls that ended more than a day ago. If
// the disk is almost full, it ends the holds of all pulls that do not run.
func (t *Tank) lapse(r *Reclaimed) error {
	low := reserve.Low(filepath.Join(t.root, "ingest"))
	return t.spendUpdate(func(tx *metadata.Tx) error {
		r.Images = 0
		images, err := tx.Images("", -1)
		if err != nil {
			return err
		}
		for _, i := range images {
			if !i.Untagged {
				continue
			}
			if err := tx.DeleteImage(i.Ref); err != nil {
				return err
			}
			r.Images++
		}
		if low {
			if _, err := t.endIdle(tx); err != nil {
				return err
			}
		}
		return tx.Lapse(time.Now())
	})
}

// sweep deletes what nothing holds, and counts it in r. A file that a flag protects (chattr) is no error.
func (t *Tank) sweep(ctx context.Context, r *Reclaimed) error {
	blobs, err := t.content.Sweep(ctx)
	dirs, derr := t.snapshots.Sweep(ctx)
	r.Blobs, r.Ingests = r.Blobs+blobs.Blobs, r.Ingests+blobs.Ingests
	r.Layers, r.Rootfs, r.Snapshots = r.Layers+dirs.Layers, r.Rootfs+dirs.Rootfs, r.Snapshots+dirs.Snapshots
	left, rest := leftover.Split(errors.Join(err, derr))
	switch {
	case left == nil:
		return rest
	case !left.Protected:
		return errors.Join(rest, left)
	}
	r.Kept = left.Error()
	return rest
}

// Clone copies a rootfs into a directory, which must be missing or empty; otherwise it returns
// errdefs.ErrFailedPrecondition. The copy shares extents if the file system can, and shares no inode.
func Clone(ctx context.Context, rootfs, dir string) error {
	if err := snapshot.Clone(ctx, rootfs, dir); err != nil {
		return errclass.Ensure(fmt.Errorf("clone %s: %w", dir, err))
	}
	return nil
}
