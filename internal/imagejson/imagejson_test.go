package imagejson

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/mediatype"
)

func desc(hex string, size string) string {
	return fmt.Sprintf(`{"mediaType": "m", "digest": "sha256:%s", "size": %s}`, strings.Repeat(hex, 64), size)
}

var id = `"sha256:` + strings.Repeat("a", 64) + `"`

func TestRead(t *testing.T) {
	manifest := func(config string, layers ...string) string {
		return fmt.Sprintf(`{"schemaVersion": 2, "config": %s, "layers": [%s]}`, config, strings.Join(layers, ","))
	}
	index := func(manifests ...string) string {
		return fmt.Sprintf(`{"schemaVersion": 2, "manifests": [%s]}`, strings.Join(manifests, ","))
	}
	c := desc("c", "1")
	for _, tc := range []struct {
		name, claimed, in string
		want              string // media type; "" is refused
	}{
		{"manifest", "", manifest(c, desc("a", "5"), desc("b", "6")), ocispec.MediaTypeImageManifest},
		{"index", "", index(desc("a", "5")), ocispec.MediaTypeImageIndex},
		{"layer twice", "", manifest(c, desc("a", "5"), desc("a", "5")), ocispec.MediaTypeImageManifest},
		{"no layers", "", manifest(c), ocispec.MediaTypeImageManifest},
		{"names of others", "", `{"layers": [], "annotations": {"Layers": "x", "layers": "y"}, "Other": {"Size": 1}}`,
			ocispec.MediaTypeImageManifest},
		{"type inside", ocispec.MediaTypeImageManifest, `{"mediaType": "` + ocispec.MediaTypeImageManifest +
			`", "layers": []}`,
			ocispec.MediaTypeImageManifest},

		{"other type inside", ocispec.MediaTypeImageIndex, `{"mediaType": "` + ocispec.MediaTypeImageManifest + `",
			"layers": []}`, ""},
		{"type of the other kind", ocispec.MediaTypeImageIndex, manifest(c), ""},
		{"both", "", `{"manifests": [], "layers": []}`, ""},
		{"neither", "", `{}`, ""},
		{"not UTF-8", "", "{\"layers\": [], \"x\": \"\xff\"}", ""},
		{"long s in layers", "", `{"config": ` + c + `, "layers": [], "layer\u017f": [` + desc("a", "5") + `]}`, ""},
		{"long s as it is", "", `{"config": ` + c + `, "layers": [], "layerſ": [` + desc("a", "5") + `]}`, ""},
		{"long s in digest", "", manifest(c, `{"digest": `+id+`, "size": 5, "dige\u017ft": "x"}`), ""},
		{"upper case in size", "", manifest(c, `{"digest": `+id+`, "size": 5, "Size": 6}`), ""},
		{"upper case in an index", "", `{"manifests": [], "Subject": null}`, ""},
		{"name of the other kind", "", `{"manifests": [], "Layers": [` + desc("a", "5") + `]}`, ""},
		{"name of schema 1", "", `{"layers": [], "fslayers": []}`, ""},
		{"twice", "", `{"layers": [], "layers": []}`, ""},
		{"more behind it", "", manifest(c) + "{}", ""},
		{"negative size", "", manifest(c, desc("a", "-1")), ""},
		{"negative size in an index", "", index(desc("a", "-1")), ""},
		{"size over int64", "", manifest(c, desc("a", "9223372036854775808")), ""},
		{"sum over int64", "", manifest(c, desc("a", "9223372036854775807")), ""},
		{"sum of one layer over int64", "", manifest(c, desc("a", "4611686018427387904"), desc("a",
			"4611686018427387904")), ""},
		{"two sizes for a digest", "", manifest(c, desc("a", "5"), desc("a", "6")), ""},
		{"two sizes for a digest, one of the config", "", manifest(c, desc("c", "2")), ""},
		{"two sizes in an index", "", index(desc("a", "5"), desc("a", "6")), ""},
		{"too many layers", "", manifest(c, strings.Repeat(`{},`, 4096)+"{}"), ""},
		{"too large", "", manifest(c) + strings.Repeat(" ", MaxManifestSize), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := Read(tc.claimed, []byte(tc.in))
			switch {
			case tc.want == "" && !errdefs.IsDataLoss(err):
				t.Errorf("not refused: %+v, %v", d, err)
			case tc.want != "" && err != nil:
				t.Error(err)
			case tc.want != "" && (d.MediaType != tc.want || (d.Index == nil) == (d.Manifest == nil)):
				t.Errorf("read as %+v", d)
			}
		})
	}
}

// TestReadSchema1: an image of the old schema is a valid document that Tank does not unpack.
func TestReadSchema1(t *testing.T) {
	if _, err := Read("", []byte(`{"schemaVersion": 1, "fsLayers": []}`)); !errors.Is(err, mediatype.ErrNotRootfs) {
		t.Error(err)
	}
}

func TestReadConfig(t *testing.T) {
	m := ocispec.Manifest{Layers: make([]ocispec.Descriptor, 1)}
	for _, tc := range []struct {
		name, in string
		ok       bool
	}{
		{"config", `{"os": "linux", "rootfs": {"type": "layers", "diff_ids": [` + id + `]}}`, true},
		{"names of labels", `{"config": {"Labels": {"OS": "x", "os": "y"}, "Volumes": {"/a": {}, "/A": {}}},
			"rootfs": {"diff_ids": [` + id + `]}}`, true},
		{"names of builders", `{"Size": 5, "docker_version": "1", "container_config": {"os": 1, "OS": 2},
			"rootfs": {"diff_ids": [` + id + `]}}`, true},
		{"upper case", `{"rootfs": {"diff_ids": [` + id + `]}, "OS": "linux"}`, false},
		{"long s", `{"rootfs": {"diff_ids": [` + id + `]}, "rootf\u017f": {"diff_ids": []}}`, false},
		{"long s in diff IDs", `{"rootfs": {"diff_ids": [` + id + `], "diff_id\u017f": []}}`, false},
		{"case of the entrypoint", `{"config": {"Entrypoint": ["/good"], "entrypoint": ["/evil"]},
			"rootfs": {"diff_ids": [` + id + `]}}`, false},
		{"a label twice", `{"config": {"Labels": {"a": "x", "a": "y"}}, "rootfs": {"diff_ids": [` + id + `]}}`, false},
		{"no diff IDs", `{}`, false},
		{"diff ID of another kind", `{"rootfs": {"diff_ids": ["sha512:` + strings.Repeat("a", 128) + `"]}}`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config, err := ReadConfig([]byte(tc.in))
			if err == nil {
				err = Pair(&m, config)
			}
			if (err == nil) != tc.ok || err != nil && !errdefs.IsDataLoss(err) {
				t.Error(err)
			}
		})
	}
}
