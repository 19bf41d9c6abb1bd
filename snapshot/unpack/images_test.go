package unpack_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
)

// layout is the path of an OCI image layout.
type layout string

func (l layout) read(t *testing.T, d digest.Digest, into any) {
	t.Helper()
	text, err := os.ReadFile(l.blob(d))
	must(t, err)
	must(t, json.Unmarshal(text, into))
}

func (l layout) blob(d digest.Digest) string {
	return filepath.Join(string(l), "blobs", d.Algorithm().String(), d.Encoded())
}

// TestImages extracts the layers of real images and verifies their diff IDs. It skips if the images are missing.
func TestImages(t *testing.T) {
	dir := os.Getenv("TANK_SHARED_IMAGES")
	if dir == "" {
		dir = "../../../shared/images"
	}
	l := layout(filepath.Join(dir, "oci"))
	text, err := os.ReadFile(filepath.Join(string(l), "index.json"))
	if os.IsNotExist(err) {
		t.Skip("no images in " + dir + "; TANK_SHARED_IMAGES names another directory")
	}
	must(t, err)
	var index ocispec.Index
	must(t, json.Unmarshal(text, &index))
	for _, desc := range index.Manifests {
		name := desc.Annotations[ocispec.AnnotationRefName]
		if name != "debian-python:12" && name != "debian-python:12-zstd" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var manifest ocispec.Manifest
			var config ocispec.Image
			l.read(t, desc.Digest, &manifest)
			l.read(t, manifest.Config.Digest, &config)
			if len(manifest.Layers) != 5 {
				t.Fatalf("%d layers", len(manifest.Layers))
			}
			for i, layer := range manifest.Layers {
				checkLayer(t, l.blob(layer.Digest), layer.MediaType, config.RootFS.DiffIDs[i])
			}
		})
	}
}

func checkLayer(t *testing.T, blob, mediaType string, diffID digest.Digest) {
	t.Helper()
	f, err := os.Open(blob)
	must(t, err)
	defer f.Close()
	z, err := decompress.NewReader(mediaType, f)
	must(t, err)
	defer z.Close()
	hash := sha256.New()
	root := openDir(t, t.TempDir())
	res, err := unpack.Extract(context.Background(), root, io.TeeReader(z, hash), userOptions())
	must(t, err)
	if got := digest.NewDigest(digest.SHA256, hash); got != diffID {
		t.Errorf("diff ID %s, want %s", got, diffID)
	}
	listed, err := tree.ReadDir(root)
	must(t, err)
	if d := difference(res.Entries(), listed); d != "" {
		t.Error(d)
	}
	t.Logf("%d entries, %d bytes, %d inodes: %s", len(res.Entries()), res.Size, res.Inodes, notes(res))
}
