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
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/integration"
)

// repository is what the registry calls the image.
const repository = "bench/image:latest"

// image is an image in the store of a registry. It is kept as image.json beside that.
type image struct {
	Name       string
	Layers     []int64 // compressed bytes
	Compressed int64
	Unpacked   int64 // bytes of the tars
	Entries    int

	store string
}

// prepareImage returns the image that is asked for. One that was not used before is pushed into a registry's store below the
// cache directory, which later runs take as it is.
func prepareImage(ctx context.Context, o options, p programs) (image, error) {
	key := fmt.Sprintf("generated-%d-%dMB-%d", generation, o.size, o.layers)
	layout, ref := "", ""
	if o.image != "" {
		rest, ok := strings.CutPrefix(o.image, "oci:")
		i := strings.IndexByte(rest, ':')
		if !ok || i < 0 {
			return image{}, fmt.Errorf("%q: wants oci:DIR:TAG", o.image)
		}
		layout, ref = rest[:i], rest[i+1:]
		img, err := integration.ReadImage(layout, ref)
		if err != nil {
			return image{}, err
		}
		key = "oci-" + img.Manifest.Digest.Encoded()[:16]
	}
	dir := filepath.Join(o.cache, key)
	if b, err := os.ReadFile(filepath.Join(dir, "image.json")); err == nil {
		img := image{store: filepath.Join(dir, "registry")}
		return img, json.Unmarshal(b, &img)
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return image{}, err
	}
	tmp, err := os.MkdirTemp(o.cache, ".new")
	if err != nil {
		return image{}, err
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(os.Stderr, "making the image %s in %s\n", key, o.cache)
	var img image
	if layout == "" {
		layout, ref = filepath.Join(tmp, "layout"), "latest"
		img, err = generate(ctx, layout, ref, o)
	} else {
		img, err = describe(layout, ref)
	}
	if err != nil {
		return img, err
	}
	if err := pushTo(ctx, filepath.Join(tmp, "registry"), layout, ref, p); err != nil {
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

func pushTo(ctx context.Context, store, layout, ref string, p programs) error {
	reg, err := startRegistry(ctx, store+".yml", store, p)
	if err != nil {
		return err
	}
	defer reg.end()
	return integration.Push(layout, ref, "http://"+reg.addr, repository)
}

// generate writes an image into a new layout.
func generate(ctx context.Context, layout, ref string, o options) (image, error) {
	blobs := filepath.Join(layout, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return image{}, err
	}
	var sum float64
	for i := range o.layers {
		sum += weights[i%len(weights)]
	}
	layers, errs := make([]generated, o.layers), make([]error, o.layers)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range o.layers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				layers[i], errs[i] = generateLayer(blobs, i, int64(float64(o.size)*1e6*weights[i%len(weights)]/sum))
			}
		})
	}
	wg.Wait()
	img := image{Name: fmt.Sprintf("generated, %d layers", o.layers)}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, l := range layers {
		if errs[i] != nil {
			return img, errs[i]
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
		img.add(l.Size, l.size, l.entries)
	}
	text, err := json.Marshal(config)
	if err != nil {
		return img, err
	}
	if manifest.Config, err = writeBlob(blobs, ocispec.MediaTypeImageConfig, text); err != nil {
		return img, err
	}
	if text, err = json.Marshal(manifest); err != nil {
		return img, err
	}
	d, err := writeBlob(blobs, ocispec.MediaTypeImageManifest, text)
	if err != nil {
		return img, err
	}
	return img, integration.WriteLayout(layout, map[string]integration.BuiltImage{ref: {Image: integration.Image{Manifest: d}}})
}

func (img *image) add(compressed, unpacked int64, entries int) {
	img.Layers = append(img.Layers, compressed)
	img.Compressed += compressed
	img.Unpacked += unpacked
	img.Entries += entries
}

// describe counts what an image in a layout holds.
func describe(layout, ref string) (image, error) {
	img := image{Name: "`" + ref + "`"}
	src, err := integration.ReadImage(layout, ref)
	if err != nil {
		return img, err
	}
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
