package plugin_test

import (
	"fmt"
	"strings"
	"testing"

	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestRefusedDocuments shows that containerd gets no image unpacked whose documents a pull by Tank
// would refuse.
func TestRefusedDocuments(t *testing.T) {
	requireRoot(t)
	good := build(t, []Item{F("a", "1")})
	manifest, config := string(good.docs[good.manifest.Digest]), string(good.docs[good.config.Digest])
	withConfig := func(from, to string) string {
		c := good.doc(ocispec.MediaTypeImageConfig, strings.Replace(config, from, to, 1))
		m := strings.Replace(manifest, good.config.Digest.String(), c.Digest.String(), 1)
		return strings.Replace(m, fmt.Sprintf(`"size":%d},"layers"`, good.config.Size),
			fmt.Sprintf(`"size":%d},"layers"`, c.Size), 1)
	}
	layer := good.layers[0].Blob
	size := fmt.Sprintf(`"size":%d}]`, layer.Size)
	for name, row := range map[string]struct {
		manifest string
		refused  bool
		goodToo  bool // the same layers belong to an image that is in order, and that was seen too
		label    bool
	}{
		"in order": {manifest, false, false, true},
		"long s in layers": {strings.Replace(manifest, `"layers"`, `"layer\u017f"`, 1), true, false,
			true},
		"long s, no label": {strings.Replace(manifest, `"layers"`, `"layer\u017f"`, 1), true, false,
			false},
		"long s, no label, a good one": {strings.Replace(manifest, `"layers"`, `"layer\u017f"`, 1), false, true,
			false},
		"long s and a good one": {strings.Replace(manifest, `"layers"`, `"layer\u017f"`, 1), true, true, true},
		"layers twice": {strings.Replace(manifest, `"layers"`, `"layers":[],"layers"`, 1), true,
			false, true},
		"config in upper case":           {withConfig(`"rootfs"`, `"RootFS"`), true, false, true},
		"diff IDs twice":                 {withConfig(`"diff_ids"`, `"diff_ids":[],"diff_ids"`), true, false, true},
		"another size than the blob has": {strings.Replace(manifest, size, `"size":12345}]`, 1), true, false, true},
		"the largest size": {strings.Replace(manifest, size, `"size":9223372036854770000}]`, 1), true,
			false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			cs := contentproxy.NewContentStore(w.conn)
			m := good.doc(ocispec.MediaTypeImageManifest, row.manifest)
			for d, data := range good.docs {
				if d == m.Digest || d != good.manifest.Digest || row.goodToo {
					put(t.Context(), t, cs, ocispec.Descriptor{Digest: d, Size: int64(len(data))}, data)
				}
			}
			delete(good.docs, m.Digest)
			good.docs[good.manifest.Digest] = []byte(manifest)
			labels := map[string]string{snapshots.LabelSnapshotRef: good.chains[0]}
			if row.label {
				labels["containerd.io/snapshot/cri.manifest-digest"] = m.Digest.String()
			}
			for n := range 2 {
				key := fmt.Sprintf("default/%d/extract-%d %s", n, n, good.chains[0])
				_, err := w.sn().Prepare(t.Context(), key, "", snapshots.WithLabels(labels))
				if refused := errdefs.IsFailedPrecondition(err); refused != row.refused {
					t.Errorf("prepare %d: %v", n, err)
				}
			}
			// Other images are not affected.
			other := map[string]string{snapshots.LabelSnapshotRef: build(t, []Item{F("b", "2")}).chains[0]}
			_, err := w.sn().Prepare(t.Context(), "other", "", snapshots.WithLabels(other))
			must(t, err)
		})
	}
}
