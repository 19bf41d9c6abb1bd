package tank

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
)

// Rebuilt is what a Rebuild found.
type Rebuilt struct {
	Images, Blobs, Layers, Rootfs int
	// Lost are directories that containers wrote, which are kept below lost/: whose they were only the database knew.
	Lost int
}

// Rebuild makes a root's database again from its directories, as after its loss or damage: blobs that hash to their names,
// layers and rootfs that are what their seals say, the images of index.json. The old database stays beside the new one as
// metadata.db.old. containerd's snapshots can't be made again, so it has to unpack its images anew, from blobs
// that are here. errdefs.ErrUnavailable while another process owns the root.
func Rebuild(ctx context.Context, root string) (Rebuilt, error) {
	var r Rebuilt
	root, err := filepath.Abs(root)
	if err != nil {
		return r, fmt.Errorf("root: %w", err)
	}
	lock := &Tank{root: root}
	if _, err := lock.own(false, false); err != nil {
		return r, fmt.Errorf("root %s: %w", root, err)
	}
	blobs, err := content.Recover(ctx, root)
	if err != nil {
		return r, errors.Join(err, lock.Close())
	}
	dirs, err := snapshot.Recover(ctx, root)
	if err != nil {
		return r, errors.Join(err, lock.Close())
	}
	r.Lost = len(dirs.Snapshots)
	if err := setAside(root, dirs.Snapshots); err != nil {
		return r, errors.Join(err, lock.Close())
	}
	if err := lock.Close(); err != nil {
		return r, err
	}
	return r, r.record(ctx, root, blobs, dirs)
}

// setAside moves away the old database and what no record can be made of.
func setAside(root string, snapshots []string) error {
	db := filepath.Join(root, "metadata.db")
	if err := os.Rename(db, db+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(snapshots) == 0 {
		return nil
	}
	lost := filepath.Join(root, "lost", time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.MkdirAll(lost, 0o700); err != nil {
		return err
	}
	for _, name := range snapshots {
		if err := os.Rename(filepath.Join(root, "snapshots", name), filepath.Join(lost, name)); err != nil {
			return err
		}
	}
	return nil
}

// record fills a new database.
func (r *Rebuilt) record(ctx context.Context, root string, blobs []metadata.Blob, dirs *snapshot.Recovered) error {
	index, err := readIndex(root)
	if err != nil {
		return err
	}
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), nil)
	if err != nil {
		return err
	}
	found := newFound(root, blobs, dirs)
	daemon := len(dirs.Layers) > 0 || len(dirs.Snapshots) > 0
	var recs []metadata.Image
	err = db.Update(func(tx *metadata.Tx) error {
		if err := tx.SkipIDs(dirs.LastID); err != nil {
			return err
		}
		for _, d := range index.Manifests {
			rec, ok := found.image(ctx, d)
			if !ok {
				continue
			}
			if err := found.put(tx, rec); err != nil {
				return err
			}
			recs = append(recs, rec)
		}
		if !daemon {
			return nil
		}
		for _, b := range blobs { // containerd's collector drops what it does not know
			if err := errors.Join(tx.PutBlob(b), tx.Hold(metadata.Containerd, metadata.BlobNode(b.Digest))); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	r.Images, r.Blobs, r.Rootfs = len(recs), len(blobs), len(dirs.Rootfs)
	if r.Layers, err = holdLayers(ctx, root, daemon, recs); err != nil {
		return err
	}
	return nil
}

// holdLayers opens the rebuilt root and has each image hold its layers, whose blobs are hashed again for it: that a blob
// has the diff ID that a config claims is never believed.
func holdLayers(ctx context.Context, root string, daemon bool, recs []metadata.Image) (n int, err error) {
	t, err := Open(root, &Options{Daemon: daemon})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if daemon {
		for _, rec := range recs {
			for _, p := range rec.Platforms {
				for _, l := range layersOf(p.Layers, p.DiffIDs) {
					if _, err := t.snapshots.Unpack(ctx, metadata.ImageHolder(rec.Ref), l); err != nil {
						return n, fmt.Errorf("image %s: %w", rec.Ref, err)
					}
					n++
				}
			}
		}
	}
	if _, err := t.GC(ctx); err != nil {
		return n, err
	}
	if err := t.snapshots.Sync(ctx); err != nil {
		return n, err
	}
	return n, t.writeLayout()
}

func readIndex(root string) (index ocispec.Index, err error) {
	b, err := regular.ReadFile(filepath.Join(root, ocispec.ImageIndexFile), maxLayout)
	if errors.Is(err, os.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("index.json: %w: %w", err, errdefs.ErrDataLoss)
	}
	return index, nil
}

// foundThings is what images are made of.
type foundThings struct {
	root   string
	blobs  map[digest.Digest]metadata.Blob
	rootfs map[digest.Digest]metadata.Rootfs
}

func newFound(root string, blobs []metadata.Blob, dirs *snapshot.Recovered) *foundThings {
	f := &foundThings{root, map[digest.Digest]metadata.Blob{}, map[digest.Digest]metadata.Rootfs{}}
	for _, b := range blobs {
		f.blobs[b.Digest] = b
	}
	for _, r := range dirs.Rootfs {
		f.rootfs[r.Manifest] = r
	}
	return f
}

// image reads the record of a reference from its blobs: the platforms of which everything is here.
func (f *foundThings) image(ctx context.Context, d ocispec.Descriptor) (rec metadata.Image, ok bool) {
	rec = metadata.Image{Ref: d.Annotations[ocispec.AnnotationRefName], Target: d, Created: time.Now().UTC()}
	rec.Updated = rec.Created
	rec.Target.Annotations = nil
	if rec.Ref == "" {
		return rec, false
	}
	manifests := []ocispec.Descriptor{d}
	for depth := 0; len(manifests) > 0 && depth < 4; depth++ {
		var deeper []ocispec.Descriptor
		for _, m := range manifests {
			doc := f.document(ctx, m)
			if doc == nil {
				continue
			}
			if doc.Index != nil {
				deeper = append(deeper, doc.Index.Manifests...)
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

func (f *foundThings) platform(ctx context.Context, m ocispec.Descriptor, manifest *ocispec.Manifest) (p metadata.Platform, ok bool) {
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
	for _, l := range manifest.Layers {
		if b, here := f.blobs[l.Digest]; !here || b.Size != l.Size {
			return p, false
		}
	}
	m.Annotations, m.Platform = nil, nil
	_, rootfs := f.rootfs[m.Digest]
	return metadata.Platform{
		Platform: platforms.Normalize(config.Platform), Manifest: m, Config: manifest.Config, Layers: manifest.Layers,
		DiffIDs: config.RootFS.DiffIDs, Rootfs: rootfs,
	}, true
}

// document reads a manifest or an index; nil if it is not here or would be refused in a pull.
func (f *foundThings) document(ctx context.Context, d ocispec.Descriptor) *imagejson.Document {
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

// leaveOut logs why an image is not recorded again. It returns false.
func (f *foundThings) leaveOut(ctx context.Context, d ocispec.Descriptor, err error) bool {
	if !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warnf("rebuild: blob %.100q", d.Digest)
	}
	return false
}

// read returns a blob that is here with the size that d gives it; errdefs.ErrNotFound when none is here.
func (f *foundThings) read(d ocispec.Descriptor) ([]byte, error) {
	b, here := f.blobs[d.Digest]
	if !here {
		return nil, fmt.Errorf("blob %.100q: %w", d.Digest, errdefs.ErrNotFound)
	}
	if b.Size != d.Size {
		return nil, fmt.Errorf("%d bytes where %d were announced: %w", b.Size, d.Size, errdefs.ErrDataLoss)
	}
	return regular.ReadFile(filepath.Join(f.root, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded()), imagejson.MaxConfigSize)
}

// put records an image and all it holds.
func (f *foundThings) put(tx *metadata.Tx, rec metadata.Image) error {
	if err := tx.PutImage(rec); err != nil {
		return err
	}
	h := metadata.ImageHolder(rec.Ref)
	hold := func(d digest.Digest) error {
		return errors.Join(tx.PutBlob(f.blobs[d]), tx.Hold(h, metadata.BlobNode(d)))
	}
	if err := hold(rec.Target.Digest); err != nil {
		return err
	}
	for _, p := range rec.Platforms {
		for _, d := range append([]ocispec.Descriptor{p.Manifest, p.Config}, p.Layers...) {
			if err := hold(d.Digest); err != nil {
				return err
			}
		}
		if p.Rootfs {
			if err := errors.Join(tx.PutRootfs(f.rootfs[p.Manifest.Digest]), tx.Hold(h, metadata.RootfsNode(p.Manifest.Digest))); err != nil {
				return err
			}
		}
	}
	return nil
}
