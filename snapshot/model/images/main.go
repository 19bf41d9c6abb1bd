// Command images writes random images into an OCI layout, for comparisons with other programs, which know nothing of
// Tank's packages.
//
// It owns what it writes into the given directory: the layout, whose tags are the seeds, and images.json, which
// has for each seed whether the model refuses the image, and which cases it saw in it. Its invariant: the same
// seeds give the same bytes.
//
// The surprising rule: every second image keeps to what builders of images make, since nearly all of the others do
// something that another program reads differently.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/snapshot/model"
	"github.com/tank-snapshotter/tank/snapshot/model/random"
	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// image is a line of images.json.
type image struct {
	Tag     string       // the seed
	Refused bool         // by the model
	Cases   []model.Case // that came up
	Layers  [][]string   // the entries, for reports
}

func main() {
	dir := flag.String("dir", "", "an empty directory, or none yet")
	first := flag.Uint64("first", 1, "the first seed")
	count := flag.Uint64("count", 24, "how many seeds")
	flag.Parse()
	if err := write(*dir, *first, *count); err != nil {
		log.Fatal(err)
	}
}

func write(dir string, first, count uint64) error {
	l := layout{dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var images []image
	for seed := first; seed < first+count; seed++ {
		layers := random.Image(seed, random.Options{Tame: seed%2 == 0, Odd: seed%4 == 1})
		manifest, err := l.image(layers)
		if err != nil {
			return fmt.Errorf("seed %d: %w", seed, err)
		}
		result, err := model.Apply(layers)
		i := image{Tag: fmt.Sprint(seed), Refused: err != nil, Cases: slices.Sorted(maps.Keys(result.Seen))}
		for _, items := range layers {
			var texts []string
			for _, item := range items {
				texts = append(texts, item.String())
			}
			i.Layers = append(i.Layers, texts)
		}
		manifest.Annotations = map[string]string{ocispec.AnnotationRefName: i.Tag}
		index.Manifests = append(index.Manifests, manifest)
		images = append(images, i)
	}
	for name, content := range map[string]any{
		"oci-layout":  ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		"index.json":  index,
		"images.json": images,
	} {
		text, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// layout is a directory of blobs.
type layout struct{ dir string }

func (l layout) blob(mediaType string, data []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, os.WriteFile(filepath.Join(l.dir, "blobs", "sha256", d.Digest.Encoded()), data, 0o644)
}

func (l layout) document(mediaType string, content any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.blob(mediaType, text)
}

// image writes an image of uncompressed layers and returns its manifest.
func (l layout) image(layers [][]unpacktest.Item) (ocispec.Descriptor, error) {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.Type = "layers"
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	for _, items := range layers {
		data, err := unpacktest.Archive(items...)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		d, err := l.blob(ocispec.MediaTypeImageLayer, data)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		manifest.Layers = append(manifest.Layers, d)
	}
	var err error
	if manifest.Config, err = l.document(ocispec.MediaTypeImageConfig, config); err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.document(ocispec.MediaTypeImageManifest, manifest)
}
