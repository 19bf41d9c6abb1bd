// Package catalog reads and writes the records of pulled images.
//
// It owns the image records in the database and which blobs, layers and rootfs an image holds. Its
// invariant: the transaction that records an image also holds everything that the record lists. The
// surprising rule: a reference with a digest finds what other references of its repository have under that
// digest, even if the reference itself has no record.
package catalog

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
)

// Entry is the image of a reference.
type Entry struct {
	metadata.Image
	// Borrowed are the references whose records Image was put together from, because the reference itself
	// has no record. Empty: Image is the record of the reference.
	Borrowed []string
	// Indexes are the indexes between Target and the manifests, which the records do not list.
	Indexes []ocispec.Descriptor
}

// Find returns the record of a reference. If there is none, it returns what other references of the
// repository have under the reference's digest, which is the digest of an index or of a manifest. It
// returns errdefs.ErrNotFound if they have nothing under it.
func Find(tx *metadata.Tx, ref resolver.Reference) (Entry, error) {
	rec, err := tx.Image(ref.String())
	if !errdefs.IsNotFound(err) || ref.Digest() == "" {
		return Entry{Image: rec}, err
	}
	e, berr := Borrow(tx, ref)
	if berr != nil {
		return e, berr
	}
	if len(e.Borrowed) == 0 {
		return e, err
	}
	return e, nil
}

// Borrow puts together what all references of ref's repository have under the digest of ref, whatever their
// tags are. Entry.Borrowed is empty if they have nothing.
func Borrow(tx *metadata.Tx, ref resolver.Reference) (Entry, error) {
	e := Entry{Image: metadata.Image{Ref: ref.String()}}
	all, err := tx.ImagesOf(ref.Domain() + "/" + ref.Path())
	if err != nil {
		return e, err
	}
	// The first image decides what Inspect shows. Images that still have their tag come before images whose
	// tag has moved to another image, newer ones before older ones.
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
		e.add(tx, rec, ref.Digest())
	}
	return e, nil
}

// add adds what a record has under a digest.
func (e *Entry) add(tx *metadata.Tx, rec metadata.Image, d digest.Digest) {
	found, target := rec.Platforms, rec.Target
	if rec.Target.Digest != d {
		found = slices.DeleteFunc(slices.Clone(found), func(p metadata.Platform) bool { return p.Manifest.Digest != d })
		if len(found) == 0 {
			return
		}
		target = found[0].Manifest
	} else {
		e.Indexes = append(e.Indexes, unlisted(tx, rec)...)
	}
	if len(e.Borrowed) == 0 {
		e.Target, e.Created, e.Updated = target, rec.Created, rec.Updated
	}
	e.Borrowed = append(e.Borrowed, rec.Ref)
	for _, p := range found {
		i := slices.IndexFunc(e.Platforms, sameManifest(p))
		if i < 0 {
			e.Platforms = append(e.Platforms, p)
			continue
		}
		o := &e.Platforms[i]
		o.Rootfs = o.Rootfs || p.Rootfs
		o.RequestedAs = union(o.RequestedAs, p.RequestedAs)
	}
}

// sameManifest returns a function that reports whether a platform has the manifest of p.
func sameManifest(p metadata.Platform) func(metadata.Platform) bool {
	return func(o metadata.Platform) bool { return o.Manifest.Digest == p.Manifest.Digest }
}

// unlisted returns the blobs that an image holds but its record does not list: indexes below its index.
func unlisted(tx *metadata.Tx, rec metadata.Image) (more []ocispec.Descriptor) {
	listed := map[string]bool{}
	for _, d := range Blobs(rec) {
		listed[d.Digest.String()] = true
	}
	for _, key := range tx.Held(metadata.ImageHolder(rec.Ref), metadata.KindBlob, "", -1) {
		if !listed[key] {
			more = append(more, ocispec.Descriptor{Digest: digest.Digest(key)})
		}
	}
	return more
}

// Elsewhere returns nil if an image is recorded under ref. If it is recorded only under other references,
// the error names them. The error is of class errdefs.ErrNotFound in both this case and that of no record.
func Elsewhere(tx *metadata.Tx, ref resolver.Reference) error {
	e, err := Find(tx, ref)
	if err != nil || len(e.Borrowed) == 0 {
		return err
	}
	return fmt.Errorf("image %s: not recorded under this reference, but under %s: %w",
		ref, strings.Join(e.Borrowed, ", "), errdefs.ErrNotFound)
}

// Blobs returns the blobs that the record of an image lists: its target, and the manifest, config and
// layers of each platform.
func Blobs(i metadata.Image) []ocispec.Descriptor {
	all := []ocispec.Descriptor{i.Target}
	for _, p := range i.Platforms {
		all = append(append(all, p.Manifest, p.Config), p.Layers...)
	}
	return all
}

// PlatformBlobs returns the blobs of one platform of an image, its target included.
func PlatformBlobs(target ocispec.Descriptor, p metadata.Platform) []ocispec.Descriptor {
	return append([]ocispec.Descriptor{target, p.Manifest, p.Config}, p.Layers...)
}

// Size returns the sum of the sizes of a platform's blobs, in bytes. A record that an older version wrote may
// have sizes that were never compared with a blob: Size returns math.MaxInt64 if the sum overflows or a size
// is negative.
func Size(p metadata.Platform) int64 {
	sum := int64(0)
	for _, d := range append([]ocispec.Descriptor{p.Manifest, p.Config}, p.Layers...) {
		if d.Size < 0 || d.Size > math.MaxInt64-sum {
			return math.MaxInt64
		}
		sum += d.Size
	}
	return sum
}

// PlatformNames returns the names of platforms, without duplicates.
func PlatformNames(all []metadata.Platform) (names []string) {
	for _, p := range all {
		names = union(names, []string{platforms.FormatAll(p.Platform)})
	}
	return names
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(slices.Clip(a), s)
		}
	}
	return a
}
