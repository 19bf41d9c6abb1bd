package ocilayout

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/regular"
)

// Limits on what the entries of other programs may need.
const (
	maxForeign      = 10_000  // manifests and indexes
	maxForeignBlobs = 500_000 // that they need
)

// ForeignBlobs returns the blobs that the entries of other programs in index.json need. A sweep
// keeps these although no record names them. Nothing is served from them: what has no record is not
// visible, and a pull that needs such a blob hashes it first. An error means that the blobs are not
// known.
func (l *Layout) ForeignBlobs() (map[digest.Digest]bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fi, err := os.Lstat(l.indexPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if was := l.known.info; was != nil && !l.known.others && os.SameFile(was, fi) && was.Size() == fi.Size() &&
		was.ModTime().Equal(fi.ModTime()) {
		return nil, nil
	}
	file, _, err := l.read()
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	f := foreignWalk{filepath.Join(l.root, "blobs"), map[digest.Digest]bool{}, map[digest.Digest]bool{}}
	for _, raw := range file.Manifests {
		var d ocispec.Descriptor
		if json.Unmarshal(raw, &d) != nil || isOwn(d) {
			continue
		}
		if err := f.need(d.Digest); err != nil {
			return nil, fmt.Errorf("index.json: entry %s of another program: %w", printable.Text(d.Digest.String()),
				err)
		}
	}
	return f.needed, nil
}

// foreignWalk finds the blobs that entries of other programs need.
type foreignWalk struct {
	blobs  string // the directory
	needed map[digest.Digest]bool
	read   map[digest.Digest]bool // the documents that were looked at
}

// foreignDocument has all members by which a manifest or an index of whatever kind names blobs. It
// is read leniently: a blob that is kept for nothing does no harm.
type foreignDocument struct {
	Config    foreignBlob
	Layers    []foreignBlob
	Blobs     []foreignBlob
	Manifests []foreignBlob
}

// foreignBlob is what is read of a descriptor: a document of a few megabytes may have a million of
// them.
type foreignBlob struct{ Digest digest.Digest }

// need adds the blobs that the manifest or index d needs, as far as they are here.
func (f *foreignWalk) need(d digest.Digest) error {
	if !isDigest(d) || f.read[d] {
		return nil
	}
	f.needed[d], f.read[d] = true, true
	if len(f.read) > maxForeign || len(f.needed) > maxForeignBlobs {
		return fmt.Errorf("it needs more than %d manifests or %d blobs", maxForeign, maxForeignBlobs)
	}
	path := filepath.Join(f.blobs, d.Algorithm().String(), d.Encoded())
	b, err := regular.ReadFile(path, imagejson.MaxManifestSize)
	if errors.Is(err, os.ErrNotExist) || err != nil && isLarge(path) {
		return nil
	}
	if err != nil {
		return err
	}
	var doc foreignDocument
	_ = json.Unmarshal(b, &doc) // members of other types are left out, and what is no JSON names no blobs
	for _, l := range append(append(doc.Layers, doc.Blobs...), doc.Config) {
		f.needed[l.Digest] = true
	}
	for _, m := range doc.Manifests {
		if err := f.need(m.Digest); err != nil {
			return err
		}
	}
	return nil
}

func isDigest(d digest.Digest) bool { return d.Validate() == nil }

// isLarge reports whether a file is larger than any manifest, so that it names no blobs.
func isLarge(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Size() > imagejson.MaxManifestSize
}
