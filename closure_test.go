package tank_test

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// liar is a registry with the image "good" and changed variants of it.
type liar struct {
	*registrytest.Registry
	manifest ocispec.Manifest // of the image "good"
}

func newLiar(t *testing.T) *liar {
	l := &liar{Registry: registrytest.New(t)}
	tar := Tar(t, base...)
	layer := l.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, tar))
	config := ocispec.Image{Platform: platforms.DefaultSpec()}
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(tar)}}
	l.manifest = ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{layer}}
	l.manifest.Config = l.Blob(ocispec.MediaTypeImageConfig, registrytest.JSON(config))
	l.manifest.SchemaVersion = 2
	l.image("good", func(*ocispec.Manifest) {})
	return l
}

func (l *liar) image(tag string, change func(*ocispec.Manifest)) ocispec.Descriptor {
	m := l.manifest
	m.Layers = append([]ocispec.Descriptor{}, m.Layers...)
	change(&m)
	return l.Manifest(tag, m.MediaType, registrytest.JSON(m))
}

// TestSizesOnEveryRoot shows that a manifest with a wrong size is refused, whatever the root pulled
// before.
func TestSizesOnEveryRoot(t *testing.T) {
	t.Parallel()
	reg := newLiar(t)
	layerSize := func(size int64) func(*ocispec.Manifest) {
		return func(m *ocispec.Manifest) { m.Layers[0].Size = size }
	}
	right := reg.manifest.Layers[0].Size
	lies := map[string]func(tag string) ocispec.Descriptor{}
	for name, change := range map[string]func(*ocispec.Manifest){
		"layer-larger": layerSize(right + 7), "layer-smaller": layerSize(right - 1), "layer-empty": layerSize(0),
		"layer-max": layerSize(math.MaxInt64), "layer-negative": layerSize(-1),
		"config-larger": func(m *ocispec.Manifest) { m.Config.Size++ },
		"config-empty":  func(m *ocispec.Manifest) { m.Config.Size = 0 },
		"config-max":    func(m *ocispec.Manifest) { m.Config.Size = math.MaxInt64 },
		"two-sizes": func(m *ocispec.Manifest) {
			m.Layers = append(m.Layers, m.Layers[0])
			m.Layers[1].Size = 99
		},
		"layer-and-config": func(m *ocispec.Manifest) { m.Layers[0].Digest = m.Config.Digest },
	} {
		lies[name] = func(tag string) ocispec.Descriptor { return reg.image(tag, change) }
	}
	for name, size := range map[string]int64{"manifest-larger": 1, "manifest-smaller": -1, "manifest-empty": 0} {
		lies[name] = func(tag string) ocispec.Descriptor {
			d := reg.image("", func(*ocispec.Manifest) {})
			if size += d.Size; name == "manifest-empty" {
				size = 0
			}
			p := platforms.DefaultSpec()
			d.Size, d.Platform = size, &p
			return reg.Index(tag, d)
		}
	}
	for name, lie := range lies {
		desc := lie(name)
		t.Run(name, func(t *testing.T) {
			for _, before := range []string{"nothing", "good", "the same tag"} {
				r := newRoot(t, false)
				r.with(t, func(tk *tank.Tank) {
					pull := func(ref string, opts *tank.PullOptions) error {
						_, err := tk.Pull(t.Context(), reg.Host+"/x"+ref, opts)
						return err
					}
					tag := ":" + name
					switch before {
					case "the same tag":
						tag = ":moving-" + name
						reg.image(tag[1:], func(*ocispec.Manifest) {})
						must(t, pull(tag, nil))
						lie(tag[1:])
					case "good":
						must(t, pull(":good", nil))
					}
					for how, err := range map[string]error{
						"by tag":         pull(tag, nil),
						"without rootfs": pull(tag, &tank.PullOptions{NoRootfs: true}),
						"by digest":      pull("@"+desc.Digest.String(), nil),
						"refresh":        pull(tag, &tank.PullOptions{Refresh: true}),
					} {
						if !errdefs.IsDataLoss(err) {
							t.Errorf("after %s, %s: %v", before, how, err)
						}
					}
					err := pull(tag, &tank.PullOptions{Offline: true})
					if before != "the same tag" && !errdefs.IsNotFound(err) {
						t.Errorf("after %s, offline: %v", before, err)
					}
				})
			}
		})
	}
}

// TestRecordsOfLies shows how Tank treats an image that an older version recorded with a wrong size
// of a blob.
func TestRecordsOfLies(t *testing.T) {
	t.Parallel()
	reg := newLiar(t)
	r := newRoot(t, false)
	ref := reg.Host + "/x:good"
	_, err := r.pull(t, ref, nil)
	must(t, err)
	r.record(t, ref, func(tx *metadata.Tx, rec *metadata.Image) {
		rec.Platforms[0].Layers[0].Size = math.MaxInt64
	})
	r.with(t, func(tk *tank.Tank) {
		infos, err := tk.Images(context.Background())
		must(t, err)
		if infos[0].Size < 0 {
			t.Errorf("recorded size: %d bytes", infos[0].Size)
		}
		if faults := faultsOf(t, tk); len(faults) != 1 || faults[0].What != "image" || !errdefs.IsDataLoss(faults[0]) {
			t.Errorf("check reports %v", faults)
		}
	})
	if _, err := r.pull(t, ref, &tank.PullOptions{Offline: true}); !errdefs.IsNotFound(err) {
		t.Errorf("offline: %v", err)
	}
	_, err = r.pull(t, ref, nil) // the manifest of the registry is right, so this repairs the record
	must(t, err)
}

// TestTwoReadings shows that a document with two readings, one of which ignores the case of keys,
// is refused in a pull and in a record of an older version.
func TestTwoReadings(t *testing.T) {
	t.Parallel()
	reg := newLiar(t)
	r := newRoot(t, false)
	evil := reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, Tar(t, F("evil", ""))))
	manifest := string(registrytest.JSON(reg.manifest))
	layers := string(registrytest.JSON([]ocispec.Descriptor{evil}))
	for name, m := range map[string]string{
		"layers-last":  strings.TrimSuffix(manifest, "}") + `,"layer\u017f":` + layers + "}",
		"layers-first": `{"layer\u017f":` + layers + "," + strings.TrimPrefix(manifest, "{"),
		"layers-plain": strings.TrimSuffix(manifest, "}") + `,"layerſ":` + layers + "}",
		"layers-upper": strings.TrimSuffix(manifest, "}") + `,"LAYERS":` + layers + "}",
		"layers-twice": strings.TrimSuffix(manifest, "}") + `,"layers":` + layers + "}",
		"digest": strings.Replace(manifest, `"layers":[{`, `"layers":[{"dige\u017ft":"`+string(evil.Digest)+`",`,
			1),
		"config":       withConfig(reg, `{"o\u017f":"linux",`),
		"config-twice": withConfig(reg, `{"config":{},`),
	} {
		desc := reg.Manifest(name, ocispec.MediaTypeImageManifest, []byte(m))
		p := platforms.DefaultSpec()
		desc.Platform = &p
		reg.Index("index-"+name, desc)
		entries := string(registrytest.JSON([]ocispec.Descriptor{desc}))
		folded := `{"schemaVersion":2,"manifests":[],"manife\u017fts":` + entries + `}`
		reg.Manifest("folded-index-"+name, ocispec.MediaTypeImageIndex, []byte(folded))
		r.with(t, func(tk *tank.Tank) {
			for _, tag := range []string{name, "index-" + name, "folded-index-" + name} {
				if _, err := tk.Pull(t.Context(), reg.Host+"/x:"+tag, nil); !errdefs.IsDataLoss(err) {
					t.Errorf("%s: %v", tag, err)
				}
			}
		})
	}
}

// withConfig returns the manifest of an image without layers whose config begins with start.
func withConfig(reg *liar, start string) string {
	config := registrytest.JSON(
		ocispec.Image{Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers"}})
	config = append([]byte(start), config[1:]...)
	m := reg.manifest
	m.Config, m.Layers = reg.Blob(ocispec.MediaTypeImageConfig, config), []ocispec.Descriptor{}
	return string(registrytest.JSON(m))
}

// TestRecordsOfTwoReadings shows how Tank treats an image of an older version whose documents have
// two readings.
func TestRecordsOfTwoReadings(t *testing.T) {
	t.Parallel()
	for what, pick := range map[string]func(*metadata.Image) *ocispec.Descriptor{
		"config":   func(rec *metadata.Image) *ocispec.Descriptor { return &rec.Platforms[0].Config },
		"manifest": func(rec *metadata.Image) *ocispec.Descriptor { return &rec.Platforms[0].Manifest },
		"index":    func(rec *metadata.Image) *ocispec.Descriptor { return &rec.Target },
	} {
		t.Run(what, func(t *testing.T) {
			reg := newLiar(t)
			p := platforms.DefaultSpec()
			good := reg.image("", func(*ocispec.Manifest) {})
			good.Platform = &p
			reg.Index("index", good)
			r := newRoot(t, false)
			ref := reg.Host + "/x:index"
			_, err := r.pull(t, ref, &tank.PullOptions{NoRootfs: true})
			must(t, err)
			var folded ocispec.Descriptor
			r.with(t, func(tk *tank.Tank) {
				rec := r.recorded(t, ref, tk)
				b, err := content.ReadBlob(context.Background(), tk.Content(), *pick(rec))
				must(t, err)
				b = bytes.Replace(b, []byte("{"), []byte(`{"o\u017f":null,"layer\u017f":null,`), 1)
				folded = ocispec.Descriptor{MediaType: pick(rec).MediaType, Digest: digest.FromBytes(b),
					Size: int64(len(b))}
				into := tk.Content().For(metadata.ImageHolder(rec.Ref))
				must(t, content.WriteBlob(context.Background(), into, "x", bytes.NewReader(b), folded))
			})
			r.record(t, ref,
				func(tx *metadata.Tx, rec *metadata.Image) { *pick(rec), rec.Platforms[0].Exact = folded, false })
			if _, err := r.pull(t, ref, &tank.PullOptions{Offline: true, NoRootfs: true}); !errdefs.IsDataLoss(err) {
				t.Errorf("offline: %v", err)
			}
			r.with(t, func(tk *tank.Tank) {
				if _, err := tk.Inspect(context.Background(), ref); what == "config" && !errdefs.IsDataLoss(err) {
					t.Errorf("inspect: %v", err)
				}
				if faults := faultsOf(t, tk); len(faults) != 1 || faults[0].What != "image" {
					t.Errorf("check reports %v", faults)
				}
			})
			must(t, os.Remove(filepath.Join(r.dir, "metadata.db")))
			must(t, os.Remove(filepath.Join(r.dir, "images.records"))) // which has what the database had
			rebuilt, err := tank.Rebuild(context.Background(), r.dir, nil)
			must(t, err)
			// All blobs of the registry are here. The reference resolves to the index that was recorded
			// last.
			if want := map[bool]int{false: 1}[what == "index"]; rebuilt.Images != want {
				t.Errorf("rebuilt %d images, want %d", rebuilt.Images, want)
			}
		})
	}
}

// TestRebuildComparesSizes shows that a rebuild records no image whose manifest gives a wrong size
// of a blob.
func TestRebuildComparesSizes(t *testing.T) {
	t.Parallel()
	reg := newLiar(t)
	r := newRoot(t, false)
	_, err := r.pull(t, reg.Host+"/x:good", nil)
	must(t, err)
	m := reg.manifest
	m.Layers[0].Size += 7
	b := registrytest.JSON(m)
	lie := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	must(t, os.WriteFile(filepath.Join(r.dir, "blobs", "sha256", lie.Digest.Encoded()), b, 0o444))
	var index ocispec.Index
	old, err := os.ReadFile(filepath.Join(r.dir, "index.json"))
	must(t, err)
	must(t, json.Unmarshal(old, &index))
	lie.Annotations = map[string]string{ocispec.AnnotationRefName: reg.Host + "/x:lie"}
	index.Manifests = append(index.Manifests, lie)
	must(t, os.WriteFile(filepath.Join(r.dir, "index.json"), registrytest.JSON(index), 0o644))
	must(t, os.Remove(filepath.Join(r.dir, "metadata.db")))
	rebuilt, err := tank.Rebuild(context.Background(), r.dir, nil)
	must(t, err)
	if rebuilt.Images != 1 {
		t.Errorf("rebuilt %+v", rebuilt)
	}
}

// record changes the record of a reference. No process may have the root open.
func (r *root) record(t *testing.T, ref string, change func(*metadata.Tx, *metadata.Image)) {
	t.Helper()
	db, err := metadata.Open(filepath.Join(r.dir, "metadata.db"), nil)
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, db.Update(func(tx *metadata.Tx) error {
		rec, err := tx.Image(ref)
		if err != nil {
			return err
		}
		change(tx, &rec)
		return tx.PutImage(rec)
	}))
}

// recorded returns the record of a reference as Inspect reports it.
func (r *root) recorded(t *testing.T, ref string, tk *tank.Tank) *metadata.Image {
	t.Helper()
	d, err := tk.Inspect(context.Background(), ref)
	must(t, err)
	var m ocispec.Manifest
	b, err := content.ReadBlob(context.Background(), tk.Content(), d.Platforms[0].Manifest)
	must(t, err)
	must(t, json.Unmarshal(b, &m))
	return &metadata.Image{
		Ref: d.Ref, Target: d.Target,
		Platforms: []metadata.Platform{{Manifest: d.Platforms[0].Manifest, Config: m.Config, Layers: m.Layers}},
	}
}

func faultsOf(t *testing.T, tk *tank.Tank) (faults []tank.Fault) {
	t.Helper()
	must(t, tk.Check(context.Background(), func(f tank.Fault) { faults = append(faults, f) }))
	return faults
}
