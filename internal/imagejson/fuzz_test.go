package imagejson

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/mediatype"
)

// FuzzRead: every error of Read and ReadConfig has its class, and a config that ReadConfig accepts means to
// encoding/json what it means to Tank.
func FuzzRead(f *testing.F) {
	const layer = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":3,` +
		`"digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}`
	f.Add("", []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":`+layer+
		`,"layers":[`+layer+`]}`))
	f.Add("application/vnd.oci.image.index.v1+json", []byte(`{"schemaVersion":2,"manifests":[`+layer+`]}`))
	f.Add("", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
	f.Add("", []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:a"]}}`))
	f.Fuzz(func(t *testing.T, claimed string, data []byte) {
		d, err := Read(claimed, data)
		if err != nil && !errdefs.IsDataLoss(err) && !errors.Is(err, mediatype.ErrNotRootfs) || err == nil && d == nil {
			t.Fatalf("%q: %v", data, err)
		}
		config, err := ReadConfig(data)
		if err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Errorf("%q: config: %v", data, err)
			}
			return
		}
		var want ocispec.Image
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q: encoding/json: %v", data, err)
		}
		got, _ := json.Marshal(config)
		if text, _ := json.Marshal(want); string(text) != string(got) {
			t.Errorf("%q: %s, encoding/json: %s", data, got, text)
		}
	})
}
