package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tank-snapshotter/tank/integration"
)

// repository is what the registry calls the image, whatever its tag.
const repository = "bench/image"

// image is an image in the store of a registry. It is kept as image.json beside that.
type image struct {
	Name       string
	Layers     []int64 // compressed bytes
	Compressed int64
	Unpacked   int64 // bytes of the tars
	Entries    int
	Manifest   digest.Digest            // of tagLatest
	ChainIDs   map[string]digest.Digest // of all layers, by tag

	store string
}

// prepareImage returns the image that is asked for. One that was not used before is pushed into a
// registry's store below the cache directory, which later runs take as it is.
func prepareImage(ctx context.Context, cache string, r recipe, p programs) (image, error) {
	key := r.key()
	var layout, ref string
	if r.layout != "" {
		var ok bool
		if layout, ref, ok = cutLayout(r.layout); !ok {
			return image{}, fmt.Errorf("%q: wants oci:DIR:TAG", r.layout)
		}
		img, err := integration.ReadImage(layout, ref)
		if err != nil {
			return image{}, err
		}
		key = fmt.Sprintf("oci-%d-%s", generation, img.Manifest.Digest.Encoded()[:16])
	}
	dir := filepath.Join(cache, key)
	if b, err := os.ReadFile(filepath.Join(dir, "image.json")); err == nil {
		img := image{store: filepath.Join(dir, "registry")}
		return img, json.Unmarshal(b, &img)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return image{}, err
	}
	tmp, err := os.MkdirTemp(cache, ".new")
	if err != nil {
		return image{}, err
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(os.Stderr, "making the image %s in %s\n", key, cache)
	var img image
	tags := map[string]string{tagLatest: ref}
	if layout == "" {
		layout, tags = filepath.Join(tmp, "layout"), map[string]string{tagLatest: tagLatest}
		if r.update {
			tags[tagBefore] = tagBefore
		}
		img, err = r.generate(ctx, layout)
	} else {
		img, err = describe(layout, ref)
	}
	if err != nil {
		return img, err
	}
	if err := pushTo(ctx, filepath.Join(tmp, "registry"), layout, tags, p); err != nil {
		return img, err
	}
	b, err := json.Marshal(img)
	if err != nil {
		return img, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "image.json"), b, 0o644); err != nil {
		return img, err
	}
	if err := os.RemoveAll(filepath.Join(tmp, "layout")); err != nil {
		return img, err
	}
	img.store = filepath.Join(dir, "registry")
	return img, os.Rename(tmp, dir)
}

func cutLayout(s string) (layout, ref string, ok bool) {
	rest, ok := strings.CutPrefix(s, "oci:")
	layout, ref, found := strings.Cut(rest, ":")
	return layout, ref, ok && found
}

// pushTo pushes the images of a layout under other tags into the store of a registry.
func pushTo(ctx context.Context, store, layout string, tags map[string]string, p programs) error {
	reg, err := startRegistry(ctx, store+".yml", store, p)
	if err != nil {
		return err
	}
	defer reg.end()
	for tag, ref := range tags {
		if err := integration.Push(layout, ref, "http://"+reg.addr, repository+":"+tag); err != nil {
			return err
		}
	}
	return nil
}

func (img *image) add(compressed, unpacked int64, entries int) {
	img.Layers = append(img.Layers, compressed)
	img.Compressed += compressed
	img.Unpacked += unpacked
	img.Entries += entries
}

// identify records the names that peers use for the image and its top layer.
func (img *image) identify(tag string, of integration.Image) {
	if img.ChainIDs == nil {
		img.ChainIDs = map[string]digest.Digest{}
	}
	img.Manifest, img.ChainIDs[tag] = of.Manifest.Digest, identity.ChainID(of.DiffIDs)
}

// describe counts the bytes and entries of an image in a layout.
func describe(layout, ref string) (image, error) {
	img := image{Name: "`" + ref + "`"}
	src, err := integration.ReadImage(layout, ref)
	if err != nil {
		return img, err
	}
	img.identify(tagLatest, src)
	for _, l := range src.Layers {
		size, entries, err := describeLayer(filepath.Join(layout, "blobs", "sha256", l.Digest.Encoded()), l.MediaType)
		if err != nil {
			return img, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		img.add(l.Size, size, entries)
	}
	return img, nil
}

// describeLayer measures the tar in a layer's file.
func describeLayer(name, mediaType string) (size int64, entries int, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var r io.Reader = f
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		r, err = gzip.NewReader(f)
	case strings.HasSuffix(mediaType, "zstd"):
		r, err = zstd.NewReader(f)
	}
	if err != nil {
		return 0, 0, err
	}
	return countTar(r)
}

// warm reads the registry's store, so that every contender finds it in memory.
func warm(store string) error {
	return filepath.WalkDir(store, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

// countTar reads a tar to its end.
func countTar(r io.Reader) (size int64, entries int, err error) {
	count := &counter{w: io.Discard, hash: sha256.New()}
	tr := tar.NewReader(io.TeeReader(r, count))
	for {
		if _, err := tr.Next(); err == io.EOF {
			break
		} else if err != nil {
			return 0, 0, err
		}
		entries++
	}
	_, err = io.Copy(count, r)
	return count.n, entries, err
}
