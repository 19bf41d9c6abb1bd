package tank

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
)

// ImageInfo is one pulled platform of one image.
type ImageInfo struct {
	Ref      string // normalized, or REF@DIGEST for an image that its tag has left
	Digest   digest.Digest
	Manifest digest.Digest
	Platform string
	Rootfs   string // absolute path; "" when none was assembled
	Size     int64  // bytes of the blobs
	Untagged bool   // kept until GC
	Created  time.Time
}

func (t *Tank) records() (images []metadata.Image, err error) {
	err = t.db.View(func(tx *metadata.Tx) error {
		images, err = tx.Images("", -1)
		return err
	})
	return images, err
}

// Images lists what was pulled, by reference.
func (t *Tank) Images(context.Context) ([]ImageInfo, error) {
	images, err := t.records()
	if err != nil {
		return nil, err
	}
	var infos []ImageInfo
	for _, i := range images {
		for _, p := range i.Platforms {
			info := ImageInfo{
				Ref: i.Ref, Digest: i.Target.Digest, Manifest: p.Manifest.Digest, Platform: platforms.Format(p.Platform),
				Untagged: i.Untagged, Created: i.Created, Size: p.Manifest.Size + p.Config.Size,
			}
			for _, l := range p.Layers {
				info.Size += l.Size
			}
			if p.Rootfs {
				info.Rootfs = filepath.Join(t.root, "rootfs", p.Manifest.Digest.Algorithm().String(), p.Manifest.Digest.Encoded())
			}
			infos = append(infos, info)
		}
	}
	return infos, nil
}

// Remove forgets an image, and what an unfinished pull of it gathered unless that pull runs. The space comes back with GC.
// errdefs.ErrNotFound when there is neither.
func (t *Tank) Remove(_ context.Context, ref string) error {
	parsed, err := resolver.ParseReference(ref)
	if err != nil {
		return err
	}
	name := parsed.String()
	t.mu.Lock()
	running := t.pulls[name] > 0
	t.mu.Unlock()
	err = t.db.Update(func(tx *metadata.Tx) error {
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
		return err
	})
	if err != nil {
		return err
	}
	return t.writeLayout()
}

// Reclaimed is what a GC took away.
type Reclaimed struct {
	Images, Blobs, Ingests, Layers, Rootfs, Snapshots int
	Bytes                                             int64 // of blobs and ingests
}

// GC deletes the images that their tags have left, and then every byte that nothing holds.
func (t *Tank) GC(ctx context.Context) (Reclaimed, error) {
	var r Reclaimed
	err := t.db.Update(func(tx *metadata.Tx) error {
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
		return tx.Lapse(time.Now())
	})
	if err != nil {
		return r, err
	}
	blobs, err := t.content.Sweep(ctx)
	if err != nil {
		return r, err
	}
	dirs, err := t.snapshots.Sweep(ctx)
	r.Blobs, r.Ingests, r.Bytes = blobs.Blobs, blobs.Ingests, blobs.Bytes
	r.Layers, r.Rootfs, r.Snapshots = dirs.Layers, dirs.Rootfs, dirs.Snapshots
	return r, err
}

// Check compares everything on the disk with its records and seals, and reports each fault (errdefs.ErrDataLoss).
func (t *Tank) Check(ctx context.Context, report func(error)) error {
	return errors.Join(t.db.Check(report), t.content.Check(ctx, report), t.snapshots.Check(ctx, report))
}

// writeLayout writes oci-layout and index.json, so that the root is an OCI image layout of the pulled references.
func (t *Tank) writeLayout() error {
	t.layout.Lock()
	defer t.layout.Unlock()
	images, err := t.records()
	if err != nil {
		return err
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	index.SchemaVersion = 2
	for _, i := range images {
		d := i.Target
		d.Annotations = map[string]string{ocispec.AnnotationRefName: i.Ref}
		index.Manifests = append(index.Manifests, d)
	}
	if err := t.writeJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	return t.writeJSON(ocispec.ImageIndexFile, index)
}

// writeJSON replaces a file of the root. It is not synced: the next change writes it again from the records.
func (t *Tank) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := filepath.Join(t.root, "staging", name)
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(t.root, name)); err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	return nil
}
