package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/integration"
)

// generateFor makes an image in a new layout.
func generateFor(t *testing.T, r recipe) (layout string, img image) {
	t.Helper()
	layout = t.TempDir()
	img, err := r.generate(t.Context(), layout)
	if err != nil {
		t.Fatal(err)
	}
	return layout, img
}

// TestGenerate: the same recipe gives the same image, of the size that it names, and what is told of it is true.
func TestGenerate(t *testing.T) {
	for name, tc := range map[string]struct {
		recipe   recipe
		size     func(image) float64
		min, max float64
	}{
		"compressed": {recipe{compressed: 1, layers: 2}, func(i image) float64 { return float64(i.Compressed) }, 1e6,
			2.2e6},
		"unpacked": {recipe{unpacked: 4, layers: 1}, func(i image) float64 { return float64(i.Unpacked) }, 4e6, 6e6},
		"entries":  {recipe{entries: 2000, layers: 3}, func(i image) float64 { return float64(i.Entries) }, 2000, 2050},
		"update": {recipe{compressed: 1, layers: 2, update: true},
			func(i image) float64 { return float64(i.Compressed) }, 1e6, 2.2e6},
	} {
		t.Run(name, func(t *testing.T) {
			layout, img := generateFor(t, tc.recipe)
			_, again := generateFor(t, tc.recipe)
			if img.Manifest == "" || again.Manifest != img.Manifest {
				t.Errorf("the first time %s, the second time %s", img.Manifest, again.Manifest)
			}
			if size := tc.size(img); size < tc.min || size > tc.max {
				t.Errorf("size %.0f, want %.0f to %.0f", size, tc.min, tc.max)
			}
			if len(img.Layers) != tc.recipe.layers {
				t.Errorf("%d layers", len(img.Layers))
			}
			described, err := describe(layout, tagLatest)
			if err != nil {
				t.Fatal(err)
			}
			if described.Compressed != img.Compressed || described.Unpacked != img.Unpacked ||
				described.Entries != img.Entries ||
				described.Manifest != img.Manifest || described.ChainIDs[tagLatest] != img.ChainIDs[tagLatest] {
				t.Errorf("told %+v, is %+v", img, described)
			}
		})
	}
}

// TestUpdateShares: the updated image differs from the one before in the last layer, and in nothing else.
func TestUpdateShares(t *testing.T) {
	layout, _ := generateFor(t, recipe{compressed: 1, layers: 4, update: true})
	before, err := integration.ReadImage(layout, tagBefore)
	if err != nil {
		t.Fatal(err)
	}
	latest, err := integration.ReadImage(layout, tagLatest)
	if err != nil {
		t.Fatal(err)
	}
	if len(before.Layers) != 4 || len(latest.Layers) != 4 {
		t.Fatalf("%d and %d layers", len(before.Layers), len(latest.Layers))
	}
	for i := range 4 {
		same := before.Layers[i].Digest == latest.Layers[i].Digest && before.DiffIDs[i] == latest.DiffIDs[i]
		if same != (i < 3) {
			t.Errorf("layer %d: the same: %v", i, same)
		}
	}
	old, now := tarNames(t, layout, before.Layers[3].Digest), tarNames(t, layout, latest.Layers[3].Digest)
	shared := 0
	for name := range now {
		if old[name] {
			shared++
		}
	}
	if shared < len(now)/2 {
		t.Errorf("%d of %d names were there before", shared, len(now))
	}
}

// TestWhiteouts: each layer deletes files of the one below that are there, also when layers are tiny.
func TestWhiteouts(t *testing.T) {
	layout, _ := generateFor(t, recipe{compressed: 1, layers: 30})
	img, err := integration.ReadImage(layout, tagLatest)
	if err != nil {
		t.Fatal(err)
	}
	below := map[string]bool{}
	for i, l := range img.Layers {
		names := tarNames(t, layout, l.Digest)
		deleted := 0
		for name := range names {
			dir, base := path.Split(name)
			if file, ok := strings.CutPrefix(base, ".wh."); ok {
				deleted++
				if !below[dir+file] {
					t.Errorf("layer %d: %s was never there", i, dir+file)
				}
			}
		}
		if want := changed / 2; i > 0 && deleted != want {
			t.Errorf("layer %d: %d whiteouts, want %d", i, deleted, want)
		}
		below = names
	}
}

func tarNames(t *testing.T, layout string, d digest.Digest) map[string]bool {
	t.Helper()
	f, err := os.Open(filepath.Join(layout, "blobs", "sha256", d.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if names[h.Name] {
			t.Errorf("%s is there twice", h.Name)
		}
		names[h.Name] = true
	}
}
