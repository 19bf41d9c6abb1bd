package tank

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
)

// named is what a reference stands for.
type named struct {
	metadata.Image
	// borrowed are the references whose records this one was put together from, because the reference has no record of
	// its own: it has a digest under which they were pulled. Empty: it is the reference's own record.
	borrowed []string
	// indexes are the indexes between Target and the manifests, which the records do not list.
	indexes []ocispec.Descriptor
}

// find returns the record of a reference or, if there is none, what other references of its repository have under its
// digest, which is that of an index or of a manifest. errdefs.ErrNotFound when nothing is here.
func find(tx *metadata.Tx, ref resolver.Reference) (named, error) {
	rec, err := tx.Image(ref.String())
	if !errdefs.IsNotFound(err) || ref.Digest() == "" {
		return named{Image: rec}, err
	}
	n, berr := borrow(tx, ref)
	if berr != nil {
		return n, berr
	}
	if len(n.borrowed) == 0 {
		return n, err
	}
	return n, nil
}

// borrow puts together what all references of a repository have under the digest of ref. The digest decides, whatever
// their tags are.
func borrow(tx *metadata.Tx, ref resolver.Reference) (named, error) {
	n := named{Image: metadata.Image{Ref: ref.String()}}
	all, err := tx.ImagesOf(ref.Domain() + "/" + ref.Path())
	if err != nil {
		return n, err
	}
	// What is taken first is shown by Inspect: what a tag names before what it has left.
	slices.SortStableFunc(all, func(a, b metadata.Image) int {
		if a.Untagged == b.Untagged {
			return b.Updated.Compare(a.Updated)
		}
		if a.Untagged {
			return 1
		}
		return -1
	})
	for _, rec := range all {
		n.take(tx, rec, ref.Digest())
	}
	return n, nil
}

// take adds what a record has under a digest.
func (n *named) take(tx *metadata.Tx, rec metadata.Image, d digest.Digest) {
	found, target := rec.Platforms, rec.Target
	if rec.Target.Digest != d {
		found = slices.DeleteFunc(slices.Clone(found), func(c metadata.Platform) bool { return c.Manifest.Digest != d })
		if len(found) == 0 {
			return
		}
		target = found[0].Manifest
	} else {
		n.indexes = append(n.indexes, unlisted(tx, rec)...)
	}
	if len(n.borrowed) == 0 {
		n.Target, n.Created, n.Updated = target, rec.Created, rec.Updated
	}
	n.borrowed = append(n.borrowed, rec.Ref)
	for _, c := range found {
		i := slices.IndexFunc(n.Platforms, func(o metadata.Platform) bool {
			return o.Manifest.Digest == c.Manifest.Digest
		})
		if i < 0 {
			n.Platforms = append(n.Platforms, c)
			continue
		}
		o := &n.Platforms[i]
		o.Rootfs = o.Rootfs || c.Rootfs
		o.RequestedAs = union(o.RequestedAs, c.RequestedAs)
	}
}

// unlisted returns the blobs that an image holds besides those in its record: indexes below its index.
func unlisted(tx *metadata.Tx, rec metadata.Image) (more []ocispec.Descriptor) {
	listed := map[string]bool{}
	for _, d := range needs(rec) {
		listed[d.Digest.String()] = true
	}
	for _, key := range tx.Held(metadata.ImageHolder(rec.Ref), metadata.KindBlob, "", -1) {
		if !listed[key] {
			more = append(more, ocispec.Descriptor{Digest: digest.Digest(key)})
		}
	}
	return more
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(slices.Clip(a), s)
		}
	}
	return a
}

// platformNames lists platforms for messages.
func platformNames(all []metadata.Platform) (names []string) {
	for _, c := range all {
		names = union(names, []string{platforms.FormatAll(c.Platform)})
	}
	return names
}

// notOwn explains why an image that is here cannot be removed under a reference: it is recorded under others only.
func notOwn(tx *metadata.Tx, ref resolver.Reference) error {
	n, err := find(tx, ref)
	if err != nil || len(n.borrowed) == 0 {
		return err
	}
	return fmt.Errorf("image %s: not recorded under this reference, but under %s: %w",
		ref, strings.Join(n.borrowed, ", "), errdefs.ErrNotFound)
}

// normalized returns the name of an image's or a pull's holder with its reference normalized, as the records have it.
func normalized(h metadata.Holder) metadata.Holder {
	kind, name := h.Split()
	if kind != metadata.HolderImage && kind != metadata.HolderPull {
		return h
	}
	ref, err := resolver.ParseReference(name)
	switch {
	case err != nil:
		return h
	case kind == metadata.HolderImage:
		return metadata.ImageHolder(ref.String())
	}
	return metadata.PullHolder(ref.String())
}
