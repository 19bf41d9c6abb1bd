package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Entry is one entry of a layer's tar.
type Entry struct {
	tar.Header
	Data []byte
}

// BuiltImage is an image in memory.
type BuiltImage struct {
	Image
	Blobs map[digest.Digest][]byte
}

func (b BuiltImage) add(mediaType string, blob []byte) ocispec.Descriptor {
	d := digest.FromBytes(blob)
	b.Blobs[d] = blob
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
}

// BuildImage makes an image of gzip layers. Same input, same bytes, as long as compress/gzip stays the same.
func BuildImage(layers [][]Entry, config ocispec.ImageConfig) (BuiltImage, error) {
	b := BuiltImage{Blobs: map[digest.Digest][]byte{}}
	for _, entries := range layers {
		stream, err := tarStream(entries)
		if err != nil {
			return b, err
		}
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(stream); err != nil {
			return b, err
		}
		if err := w.Close(); err != nil {
			return b, err
		}
		b.DiffIDs = append(b.DiffIDs, digest.FromBytes(stream))
		b.Layers = append(b.Layers, b.add(ocispec.MediaTypeImageLayerGzip, z.Bytes()))
	}
	created := time.Unix(epoch, 0).UTC()
	image := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: b.DiffIDs},
	}
	text, err := json.Marshal(image)
	if err != nil {
		return b, err
	}
	b.Config = b.add(ocispec.MediaTypeImageConfig, text)
	text, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    b.Config,
		Layers:    b.Layers,
	})
	if err != nil {
		return b, err
	}
	b.Manifest = b.add(ocispec.MediaTypeImageManifest, text)
	return b, nil
}

// tarStream writes the entries; none at all gives the two zero blocks of an empty archive.
func tarStream(entries []Entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size, h.Format = int64(len(e.Data)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.Data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
