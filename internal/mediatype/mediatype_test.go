package mediatype_test

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/mediatype"
)

// TestNotRootfs: the error for content that is not an image names it in one sentence.
func TestNotRootfs(t *testing.T) {
	for mediaType, want := range map[string]string{
		"application/vnd.cncf.helm.config.v1+json": "this is a Helm chart, not an image with a root filesystem",
		"application/vnd.docker.distribution.manifest.v1+prettyjws": "this is an image of Docker schema 1, " +
			"which is no longer supported",
		"application/vnd.oci.image.layer.v1.tar+encrypted": "this is an encrypted image, which has to " +
			"be decrypted first",
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted": "this is an encrypted image, which has to " +
			"be decrypted first",
		"application/vnd.oci.image.layer.nydus.blob.v1": "this is an image of Nydus layers, which " +
			"are not archives",
		"application/vnd.erofs.layer.v1": "this is an image of EROFS layers, which " +
			"are not archives",
		"application/vnd.dev.cosign.artifact.sbom.v1+json": "this is a Sigstore signature or attestation, " +
			"not an image with a root filesystem",
		"application/x": `this is content of media type "application/x", not an image with a root filesystem`,
	} {
		err := mediatype.NotRootfs(mediaType)
		if err.Error() != want {
			t.Errorf("%s: %q, not %q", mediaType, err, want)
		}
		if !errors.Is(err, mediatype.ErrNotRootfs) || !errdefs.IsFailedPrecondition(err) || !cause.Is(err,
			cause.NotRootfs) {
			t.Errorf("%s: %v has another class", mediaType, err)
		}
	}
}

// TestImages: no media type of an image is taken for that of an artifact.
func TestImages(t *testing.T) {
	for _, m := range []ocispec.Manifest{
		{Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}},
		{Config: ocispec.Descriptor{MediaType: "application/octet-stream"}},
		{Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, ArtifactType: "application/vnd.example"},
	} {
		m.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerZstd}}
		if err := mediatype.Manifest(&m); err != nil {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if mediatype.Encrypted("application/vnd.oci.image.layer.v1.tar+gzip") || mediatype.Encrypted("encrypted") {
		t.Error("a layer that is not encrypted")
	}
}
