package resolver

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// artifact adds a manifest with layers of the given types, and with a config of the given content.
func artifact(reg *registrytest.Registry, manifestType, artifactType, configType, config string, layerTypes ...string) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType, ArtifactType: artifactType,
		Config: reg.Blob(configType, []byte(config)), Layers: []ocispec.Descriptor{},
	}
	for _, t := range layerTypes {
		m.Layers = append(m.Layers, reg.Blob(t, []byte("content of "+t)))
	}
	reg.Manifest("1", manifestType, registrytest.JSON(m))
}

func imageConfig(layers int) string {
	c := ocispec.Image{Platform: amd64, RootFS: ocispec.RootFS{Type: "layers"}}
	for range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString("layer"))
	}
	return string(registrytest.JSON(c))
}

// TestNotRootfs checks that content without a root filesystem is reported as what it is, and that
// none of its layers is requested.
func TestNotRootfs(t *testing.T) {
	t.Parallel()
	const oci = ocispec.MediaTypeImageManifest
	for _, row := range []struct {
		testName                         string
		artifactType, configType, config string
		layers                           []string
		want                             string
	}{
		{"chart", "", "application/vnd.cncf.helm.config.v1+json", `{"name":"x"}`,
			[]string{"application/vnd.cncf.helm.chart.content.v1.tar+gzip"}, "a Helm chart"},
		{"wasm", "", "application/vnd.wasm.config.v0+json", imageConfig(1), []string{"application/wasm"},
			"a WebAssembly module"},
		{"wasm with an image's config", "", ocispec.MediaTypeImageConfig, imageConfig(1),
			[]string{"application/vnd.module.wasm.content.layer.v1+wasm"}, "a WebAssembly module"},
		{"encrypted", "", ocispec.MediaTypeImageConfig, imageConfig(2),
			[]string{ocispec.MediaTypeImageLayer, images.MediaTypeImageLayerGzipEncrypted},
			"an encrypted image, which has to be decrypted first"},
		{"signature", "", ocispec.MediaTypeImageConfig, imageConfig(1),
			[]string{"application/vnd.dev.cosign.simplesigning.v1+json"}, "a signature"},
		{"attestation", "", ocispec.MediaTypeImageConfig, imageConfig(1),
			[]string{"application/vnd.dsse.envelope.v1+json"}, "an attestation"},
		{"attestation of BuildKit", "", ocispec.MediaTypeImageConfig, imageConfig(1),
			[]string{images.MediaTypeInToto}, "an attestation"},
		{"cache", "", "application/vnd.buildkit.cacheconfig.v0", `{}`, []string{ocispec.MediaTypeImageLayerGzip},
			"a BuildKit cache"},
		{"model", "application/vnd.cncf.model.manifest.v1+json", "application/vnd.cncf.model.config.v1+json", `{}`,
			[]string{"application/vnd.cncf.model.weight.v1.tar"}, "a machine-learning model"},
		{"model with an image's config", "", images.MediaTypeDockerSchema2Config, `{}`,
			[]string{"application/vnd.ollama.image.model"}, "a machine-learning model"},
		{"artifact with a type", "application/vnd.example", ocispec.MediaTypeEmptyJSON, `{}`, []string{"text/plain"},
			`an artifact of type "application/vnd.example"`},
		{"artifact with a config's type", "", "application/vnd.unknown.config.v1+json", `{}`, []string{"text/plain"},
			`an artifact of type "application/vnd.unknown.config.v1+json"`},
		{"artifact without any", "", ocispec.MediaTypeEmptyJSON, `{}`, []string{ocispec.MediaTypeEmptyJSON},
			"an artifact"},
		{"config that is no image's", "", "application/octet-stream", `{"a":1}`, []string{ocispec.MediaTypeImageLayer},
			"an artifact"},
		{"config that is no JSON", "", "", "\x7fELF", []string{ocispec.MediaTypeImageLayer}, "an artifact"},
		{"unknown layers", "", ocispec.MediaTypeImageConfig, imageConfig(1), []string{"a/b"},
			`an image with layers of media type "a/b"`},
	} {
		t.Run(row.testName, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			artifact(reg, oci, row.artifactType, row.configType, row.config, row.layers...)
			_, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
			want := "this is " + row.want
			if !strings.Contains(want, ", which ") {
				want += ", not an image with a root filesystem"
			}
			if !errors.Is(err, mediatype.ErrNotRootfs) || !errdefs.IsFailedPrecondition(err) ||
				!strings.HasSuffix(err.Error(), want) {
				t.Fatalf("%v, not %q", err, want)
			}
			if !cause.Is(err, cause.NotRootfs) {
				t.Errorf("the cause is %q", cause.Of(err).Kind)
			}
			for _, l := range row.layers {
				if n := reg.Count("blobs/" + digest.FromString("content of "+l).String()); n != 0 {
					t.Errorf("%d requests for layers", n)
				}
			}
		})
	}
}

// TestNotRootfsInIndex checks that an index may have artifacts without a platform beside the image.
func TestNotRootfsInIndex(t *testing.T) {
	t.Parallel()
	chart := func(reg *registrytest.Registry) ocispec.Descriptor {
		return reg.Manifest("", ocispec.MediaTypeImageManifest, registrytest.JSON(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: reg.Blob("application/vnd.cncf.helm.config.v1+json", []byte(`{}`)), Layers: []ocispec.Descriptor{},
		}))
	}
	unnamed := func(reg *registrytest.Registry, arch string) ocispec.Descriptor {
		d := reg.Image("", ocispec.Platform{OS: "linux", Architecture: arch}, nil, nil)
		d.Platform = nil
		return d
	}
	for _, row := range []struct {
		testName string
		entries  func(reg *registrytest.Registry) []ocispec.Descriptor
		want     error
	}{
		{"a chart before the image", func(reg *registrytest.Registry) []ocispec.Descriptor {
			return []ocispec.Descriptor{chart(reg), unnamed(reg, "amd64")}
		}, nil},
		{"a chart alone", func(reg *registrytest.Registry) []ocispec.Descriptor {
			return []ocispec.Descriptor{chart(reg)}
		}, mediatype.ErrNotRootfs},
		{"a chart beside an image for another platform", func(reg *registrytest.Registry) []ocispec.Descriptor {
			return []ocispec.Descriptor{chart(reg),
				reg.Image("", ocispec.Platform{OS: "linux", Architecture: "s390x"}, nil, nil)}
		}, errdefs.ErrNotFound},
		{"the cache of BuildKit", func(reg *registrytest.Registry) []ocispec.Descriptor {
			return []ocispec.Descriptor{
				reg.Blob(ocispec.MediaTypeImageLayerGzip, []byte("layer")),
				reg.Blob("application/vnd.buildkit.cacheconfig.v0", []byte(`{}`)),
			}
		}, mediatype.ErrNotRootfs},
	} {
		t.Run(row.testName, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			reg.Index("1", row.entries(reg)...)
			if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); !errors.Is(err, row.want) {
				t.Errorf("%v, not %v", err, row.want)
			}
		})
	}
}

// TestConfigTypes checks that the content decides whether a config of a general media type belongs
// to an image.
func TestConfigTypes(t *testing.T) {
	t.Parallel()
	for _, manifestType := range []string{ocispec.MediaTypeImageManifest, images.MediaTypeDockerSchema2Manifest} {
		for _, configType := range []string{
			"application/octet-stream", "application/json", "text/json", "text/html", "text/plain", "",
			images.MediaTypeDockerSchema2Config, ocispec.MediaTypeImageConfig,
		} {
			t.Run(manifestType+" "+configType, func(t *testing.T) {
				t.Parallel()
				reg := registrytest.New(t)
				artifact(reg, manifestType, "", configType, imageConfig(1), ocispec.MediaTypeImageLayer)
				img, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
				if err != nil || len(img.Layers) != 1 {
					t.Fatalf("%+v, %v", img, err)
				}
			})
		}
	}
	// A config with two readings is refused, whatever its type.
	reg := registrytest.New(t)
	twice := strings.Replace(imageConfig(1), `"rootfs"`, `"rootfs":{},"rootfs"`, 1)
	artifact(reg, ocispec.MediaTypeImageManifest, "", "application/octet-stream", twice, ocispec.MediaTypeImageLayer)
	if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); !errdefs.IsDataLoss(err) {
		t.Errorf("two readings: %v", err)
	}
}
