package tank_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// variant is an image with one file, "which", that contains its name.
type variant struct {
	name   string
	index  string // the platform in the index; "" in an entry without one
	config ocispec.Platform
}

func pushVariant(t *testing.T, reg *registrytest.Registry, tag string, v variant) ocispec.Descriptor {
	t.Helper()
	tar := Tar(t, F("which", v.name))
	layer := reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, tar))
	d := reg.Image(tag, v.config, []ocispec.Descriptor{layer}, []digest.Digest{digest.FromBytes(tar)})
	d.Platform = nil
	if v.index != "" {
		p := platforms.MustParse(v.index)
		d.Platform = &p
	}
	return d
}

func config(arch, variant string) ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: arch, Variant: variant}
}

// TestPlatforms pulls images whose index and configs disagree. The index decides, a warning reports the difference, and
// the image is found again offline.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	features := config("s390x", "")
	features.OSVersion, features.OSFeatures = "1", []string{"x"}
	for _, tc := range []struct {
		name    string
		images  []variant // of an index; a single variant without an entry is a manifest without an index
		asked   string
		want    string // name of the image; "": none matches
		message string // of the warning, or of the error
	}{
		{"config without variant", []variant{{"v5", "linux/arm/v5", config("arm", "")}}, "linux/arm/v5", "v5", ""},
		{"index without variant", []variant{{"v6", "linux/arm", config("arm", "v6")}}, "linux/arm/v6", "v6", ""},
		{"asked without variant", []variant{{"v6", "linux/arm/v6", config("arm", "v6")}}, "linux/arm", "v6", ""},
		{"index with v8", []variant{{"arm64", "linux/arm64/v8", config("arm64", "")}}, "linux/arm64", "arm64", ""},
		{"asked v8", []variant{{"arm64", "linux/arm64", config("arm64", "v8")}}, "linux/arm64/v8", "arm64", ""},
		{"amd64/v2 asked", []variant{{"v1", "linux/amd64", config("amd64", "")}}, "linux/amd64/v2", "v1", ""},
		{"config without architecture", []variant{{"one", "linux/s390x", config("", "")}}, "linux/s390x", "one",
			"config names the platform linux/?: it is taken for linux/s390x, as the index says"},
		{"config of another architecture", []variant{
			{"one", "linux/amd64", config("amd64", "")}, {"two", "linux/s390x", config("amd64", "")},
		}, "linux/s390x", "two",
			"config names the platform linux/amd64: it is taken for linux/s390x, as the index says"},
		{"config of another variant", []variant{{"v6", "linux/arm/v6", config("arm", "v7")}}, "linux/arm/v6", "v6",
			"linux/arm/v7: it is taken for linux/arm/v6"},
		{"features in the config", []variant{{"one", "linux/s390x", features}}, "linux/s390x", "one", ""},
		{"features of an entry", []variant{
			{"erofs", "linux(+erofs)/s390x", config("s390x", "")}, {"plain", "linux/s390x", config("s390x", "")},
		}, "linux/s390x", "plain", ""},
		{"entry without a platform", []variant{{"one", "", config("s390x", "")}, {"two", "", config("ppc64le", "")}},
			"linux/ppc64le", "two", ""},
		{"nothing matches", []variant{
			{"one", "linux/s390x", config("s390x", "")}, {"two", "linux/arm/v7", config("arm", "v7")},
			{"three", "", config("ppc64le", "")}, {"four", "linux/s390x", config("s390x", "")},
		}, "linux/riscv64", "", "no image for linux/riscv64: it has linux/ppc64le, linux/s390x, linux/arm/v7"},
		{"only more than asked", []variant{{"v3", "linux/amd64/v3", config("amd64", "v3")}}, "linux/amd64", "",
			"no image for linux/amd64: it has linux/amd64/v3"},
		{"alone", []variant{{"one", "", config("s390x", "")}}, "linux/s390x", "one", ""},
		{"alone, with features", []variant{{"one", "", features}}, "linux/s390x", "one", ""},
		{"alone, without variant", []variant{{"one", "", config("arm", "")}}, "linux/arm/v6", "one", ""},
		{"alone, without architecture", []variant{{"one", "", config("", "")}}, "linux/s390x", "one",
			"config names the platform linux/?: it is taken for linux/s390x, which was asked for"},
		{"alone, for another", []variant{{"one", "", config("s390x", "")}}, "linux/riscv64", "",
			"no image for linux/riscv64: it has linux/s390x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			if len(tc.images) == 1 && tc.images[0].index == "" {
				pushVariant(t, reg, "1", tc.images[0])
			} else {
				var all []ocispec.Descriptor
				for _, v := range tc.images {
					all = append(all, pushVariant(t, reg, "", v))
				}
				reg.Index("1", all...)
			}
			var warning string
			r := newRoot(t, false)
			opts := tank.PullOptions{Platform: tc.asked, Log: func(line string) {
				if w, ok := strings.CutPrefix(line, tank.WarningPrefix); ok {
					warning += w
				}
			}}
			img, err := r.pull(t, reg.Host+"/x:1", &opts)
			if tc.want == "" {
				var none *resolver.NoPlatform
				if !errdefs.IsNotFound(err) || !errors.As(err, &none) || !strings.Contains(err.Error(), tc.message) {
					t.Errorf("%v, want %q", err, tc.message)
				}
				return
			}
			must(t, err)
			if b, err := os.ReadFile(filepath.Join(img.Rootfs, "which")); string(b) != tc.want {
				t.Errorf("pulled %q, %v", b, err)
			}
			if !strings.Contains(warning, tc.message) || (warning == "") != (tc.message == "") {
				t.Errorf("warning %q, want %q", warning, tc.message)
			}
			again, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{Platform: tc.asked, Offline: true})
			if err != nil || again.Manifest != img.Manifest {
				t.Errorf("offline: %+v, %v", again, err)
			}
		})
	}
}

// TestPlatformsKeptApart shows that an offline pull does not use a stored image that would run on a
// platform if the index does not choose it for that platform.
func TestPlatformsKeptApart(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	reg.Index("1", pushVariant(t, reg, "", variant{"v6", "linux/arm/v6", config("arm", "v6")}),
		pushVariant(t, reg, "", variant{"v7", "linux/arm/v7", config("arm", "v7")}))
	ref, r := reg.Host+"/x:1", newRoot(t, false)
	_, err := r.pull(t, ref, &tank.PullOptions{Platform: "linux/arm/v6"})
	must(t, err)
	_, err = r.pull(t, ref, &tank.PullOptions{Platform: "linux/arm/v7", Offline: true})
	var none *tank.NotCached
	if !errors.As(err, &none) ||
		!strings.Contains(err.Error(), "platform linux/arm/v7 is missing: here is linux/arm/v6") {
		t.Errorf("offline: %v", err)
	}
	img, err := r.pull(t, ref, &tank.PullOptions{Platform: "linux/arm/v7"})
	must(t, err)
	if b, _ := os.ReadFile(filepath.Join(img.Rootfs, "which")); string(b) != "v7" {
		t.Errorf("pulled %q", b)
	}
}

// TestPlatformsAfterRebuild shows that the index also decides for rebuilt records.
func TestPlatformsAfterRebuild(t *testing.T) {
	reg := registrytest.New(t)
	nested := reg.Index("", pushVariant(t, reg, "", variant{"two", "", config("amd64", "")}))
	arm := platforms.MustParse("linux/arm64")
	nested.Platform = &arm
	reg.Index("1", pushVariant(t, reg, "", variant{"one", "linux/arm/v6", config("arm", "")}), nested)
	ref, r := reg.Host+"/x:1", newRoot(t, false)
	for _, p := range []string{"linux/arm/v6", "linux/arm64"} {
		_, err := r.pull(t, ref, &tank.PullOptions{Platform: p})
		must(t, err)
	}
	must(t, os.Remove(filepath.Join(r.dir, "metadata.db")))
	_, err := tank.Rebuild(context.Background(), r.dir, nil)
	must(t, err)
	for p, want := range map[string]string{"linux/arm/v6": "one", "linux/arm64": "two"} {
		img, err := r.pull(t, ref, &tank.PullOptions{Platform: p, Offline: true})
		must(t, err)
		if b, _ := os.ReadFile(filepath.Join(img.Rootfs, "which")); string(b) != want {
			t.Errorf("%s: %q", p, b)
		}
	}
}
