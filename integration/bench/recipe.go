package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/integration"
)

// generation is part of the name under which an image is kept: another generator makes another image.
const generation = 3

// weights are the relative sizes of the six layers of a large real image. Further layers repeat them.
var weights = []float64{95, 47, 94, 201, 255, 8}

// recipe describes an image. Its size is one of compressed, unpacked and entries.
type recipe struct {
	compressed int // MB (10^6 bytes) of the blobs
	unpacked   int // MB of the tars
	entries    int // of small files
	layers     int
	update     bool   // a node has another version already, which differs in the last layer
	layout     string // oci:DIR:TAG instead of all that
}

// scale changes the size.
func (r *recipe) scale(by float64) {
	for _, n := range []*int{&r.compressed, &r.unpacked, &r.entries} {
		if *n > 0 {
			*n = max(1, int(math.Round(float64(*n)*by)))
		}
	}
}

// key names the image in the cache.
func (r recipe) key() string {
	size := fmt.Sprintf("%dMB", r.compressed)
	switch {
	case r.unpacked > 0:
		size = fmt.Sprintf("%dMB-unpacked", r.unpacked)
	case r.entries > 0:
		size = fmt.Sprintf("%d-entries", r.entries)
	}
	key := fmt.Sprintf("generated-%d-%s-%d", generation, size, r.layers)
	if r.update {
		key += "-update"
	}
	return key
}

// share returns the share of the image that the layer with this index has.
func (r recipe) share(index int) float64 {
	var sum float64
	for i := range r.layers {
		sum += weights[i%len(weights)]
	}
	return weights[index%len(weights)] / sum
}

// Tags of an image that updates another one.
const (
	tagBefore = "before"
	tagLatest = "latest"
)

// generate writes the image into a new layout, as tagLatest.
func (r recipe) generate(ctx context.Context, layout string) (image, error) {
	img := image{Name: fmt.Sprintf("generated, %d layers", r.layers)}
	if r.layers == 1 {
		img.Name = "generated, one layer"
	}
	blobs := filepath.Join(layout, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return img, err
	}
	layers, err := r.generateLayers(ctx, blobs)
	if err != nil {
		return img, err
	}
	refs := map[string]integration.BuiltImage{}
	if r.update {
		img.Name += "; there was one that differs in the last"
		before := layers[:r.layers]
		if refs[tagBefore], err = writeManifest(blobs, before); err != nil {
			return img, err
		}
		img.identify(tagBefore, refs[tagBefore].Image)
		layers = append(before[:r.layers-1:r.layers-1], layers[r.layers])
	}
	if refs[tagLatest], err = writeManifest(blobs, layers); err != nil {
		return img, err
	}
	for _, l := range layers {
		img.add(l.Size, l.size, l.entries)
	}
	img.identify(tagLatest, refs[tagLatest].Image)
	return img, integration.WriteLayout(layout, refs)
}

// generateLayers writes the layers, and after them, for an update, the last one's next version.
func (r recipe) generateLayers(ctx context.Context, blobs string) ([]generated, error) {
	n := r.layers
	if r.update {
		n++
	}
	layers, errs := make([]generated, n), make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range layers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				index := min(i, r.layers-1)
				layers[i], errs[i] = generateLayer(blobs, r, index, i-index)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// writeManifest stores the config and the manifest of an image of these layers.
func writeManifest(blobs string, layers []generated) (img integration.BuiltImage, err error) {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
	}
	if manifest.Config, err = writeJSON(blobs, ocispec.MediaTypeImageConfig, config); err != nil {
		return img, err
	}
	img.DiffIDs, img.Layers, img.Config = config.RootFS.DiffIDs, manifest.Layers, manifest.Config
	img.Manifest, err = writeJSON(blobs, ocispec.MediaTypeImageManifest, manifest)
	return img, err
}

func writeJSON(blobs, mediaType string, v any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return writeBlob(blobs, mediaType, text)
}
