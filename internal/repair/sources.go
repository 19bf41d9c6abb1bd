package repair

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/catalog"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// source is a repository that should have a blob.
type source struct {
	ref  resolver.Reference
	desc ocispec.Descriptor // with the media type and the size, as far as they are known
}

// sourceLabel begins the label in which containerd records where a blob came from: the rest of the key is the registry,
// and the value lists repositories.
const sourceLabel = "containerd.io/distribution.source."

// sources lists the repositories that should have a blob: those of the images that need it, and those from which
// containerd has pulled it.
func (r *Root) sources(d digest.Digest) (from []source, err error) {
	add := func(ref resolver.Reference, desc ocispec.Descriptor) {
		same := func(s source) bool {
			return s.ref.Domain() == ref.Domain() && s.ref.Path() == ref.Path() && s.desc.MediaType == desc.MediaType
		}
		if !slices.ContainsFunc(from, same) {
			from = append(from, source{ref, desc})
		}
	}
	err = r.DB.View(func(tx *metadata.Tx) error {
		images, err := tx.Images("", -1)
		if err != nil {
			return err
		}
		for _, i := range images {
			ref, err := resolver.ParseReference(i.Ref)
			if err != nil {
				continue
			}
			desc := ocispec.Descriptor{Digest: d}
			for _, b := range catalog.Blobs(i) {
				if b.Digest == d {
					desc.MediaType, desc.Size = b.MediaType, b.Size
				}
			}
			if desc.MediaType != "" || tx.Holds(metadata.ImageHolder(i.Ref), metadata.BlobNode(d)) {
				add(ref, desc)
			}
		}
		b, err := tx.Blob(d)
		if errdefs.IsNotFound(err) {
			return nil
		}
		for key, repos := range b.Labels {
			registry, ok := strings.CutPrefix(key, sourceLabel)
			for _, repo := range strings.Split(repos, ",") {
				if ref, err := resolver.NewReference(registry, repo, d.String()); ok && err == nil {
					add(ref, ocispec.Descriptor{Digest: d, Size: b.Size})
				}
			}
		}
		return err
	})
	return from, err
}

// claimed lists the blobs that have a diff ID: those that were verified, and those that images claim to have it.
func (r *Root) claimed(diffID digest.Digest) (blobs []digest.Digest, err error) {
	err = r.DB.View(func(tx *metadata.Tx) error {
		blobs = tx.BlobsOf(diffID)
		images, err := tx.Images("", -1)
		for _, i := range images {
			for _, p := range i.Platforms {
				for n, d := range p.DiffIDs {
					if d == diffID && n < len(p.Layers) && !slices.Contains(blobs, p.Layers[n].Digest) {
						blobs = append(blobs, p.Layers[n].Digest)
					}
				}
			}
		}
		return err
	})
	return blobs, err
}

// platformOf returns a platform with this manifest, and the reference of its image.
func (r *Root) platformOf(manifest digest.Digest) (ref string, p metadata.Platform, err error) {
	images, err := r.images()
	for _, i := range images {
		for _, p := range i.Platforms {
			if p.Manifest.Digest == manifest && len(p.DiffIDs) == len(p.Layers) {
				return i.Ref, p, nil
			}
		}
	}
	if err == nil {
		err = fmt.Errorf("no image in this root has the manifest %s: %w", manifest, errdefs.ErrNotFound)
	}
	return "", p, err
}

// Advice is a sentence about what would mend a fault.
func (r *Root) Advice(f metadata.Fault) string {
	switch {
	case f.Mend == metadata.MendRecord && f.Node == (metadata.Node{}):
		return "check --repair: it writes the file again"
	case f.Mend == metadata.MendRecord:
		return "check --repair: it writes the snapshot's durable record again"
	case f.Mend == metadata.MendRecords:
		return "check --rebuild, while no process owns the root: it makes the database again"
	case f.Image != "":
		return "a pull of the image, if the registry has a version that is acceptable by now"
	case f.Node.Kind == metadata.KindBlob:
		return r.blobAdvice(digest.Digest(f.Node.Key))
	case f.Node.Kind == metadata.KindRootfs:
		return "check --repair: it assembles the rootfs again from the layers of its image"
	case f.Node.Kind == metadata.KindLayer && layer.IsFixup(f.Node.Key):
		return "check --repair: it builds the fix-up again from its layer and the layers below"
	case f.Node.Kind == metadata.KindLayer:
		return r.layerAdvice(digest.Digest(f.Node.Key))
	}
	return "nothing: only the container that wrote these files had them"
}

func (r *Root) blobAdvice(d digest.Digest) string {
	from, err := r.sources(d)
	if err != nil || len(from) == 0 {
		return "a pull of an image that has the blob: no reference in this root names one, and a blob can't be made " +
			"again from its layer"
	}
	var refs []string
	for _, s := range from {
		if name := s.ref.Familiar(); !slices.Contains(refs, name) {
			refs = append(refs, name)
		}
	}
	return "check --repair: it downloads the blob again from the repository of " + strings.Join(refs, " or ")
}

func (r *Root) layerAdvice(diffID digest.Digest) string {
	blobs, err := r.claimed(diffID)
	if err != nil {
		return "check --repair: it unpacks the blob of the layer again"
	}
	for _, b := range blobs {
		if _, here := r.Content.Size(b); here {
			return fmt.Sprintf("check --repair: it unpacks the blob %s again", b)
		}
	}
	for _, b := range blobs {
		if from, err := r.sources(b); err == nil && len(from) > 0 {
			return fmt.Sprintf("check --repair: it downloads the blob %s again from the repository of %s, and "+
				"unpacks it", b, from[0].ref.Familiar())
		}
	}
	return "a pull of an image that has the layer: its blob is not here, and no reference in this root names one"
}
