package mediatype

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// ErrNotRootfs is the error for content that is valid, but is not an image with a root filesystem. Its class is
// errdefs.ErrFailedPrecondition.
var ErrNotRootfs = cause.Mark(
	fmt.Errorf("not an image with a root filesystem: %w", errdefs.ErrFailedPrecondition), cause.NotRootfs, "")

// notRootfs is an ErrNotRootfs whose text is one sentence.
type notRootfs struct{ what string }

func (e notRootfs) Error() string {
	if strings.Contains(e.what, ", which ") {
		return "this is " + e.what
	}
	return "this is " + e.what + ", not an image with a root filesystem"
}

func (e notRootfs) Unwrap() error { return ErrNotRootfs }

// kinds has the names of artifacts, by the beginning of one of their media types. The first entry that
// matches counts. A name with a relative clause explains by itself why there is no root filesystem.
var kinds = []struct{ prefix, name string }{
	{"application/vnd.docker.distribution.manifest.v1+", "an image of Docker schema 1, which is no longer supported"},
	{"application/vnd.oci.artifact.manifest.", "an OCI artifact"},
	{"application/vnd.cncf.helm.", "a Helm chart"},
	{"application/vnd.wasm.", "a WebAssembly module"},
	{"application/wasm", "a WebAssembly module"},
	{"application/vnd.w3c.wasm", "a WebAssembly module"},
	{"application/vnd.module.wasm", "a WebAssembly module"},
	{"application/vnd.bytecodealliance.wasm", "a WebAssembly module"},
	{"application/vnd.fermyon.spin", "a WebAssembly module"},
	{"application/vnd.dev.cosign.simplesigning", "a signature"},
	{"application/vnd.dev.cosign.artifact.sig", "a signature"},
	{"application/vnd.cncf.notary.signature", "a signature"},
	{"application/vnd.dev.sigstore.bundle", "a Sigstore signature or attestation"},
	{"application/vnd.dev.cosign.", "a Sigstore signature or attestation"},
	{"application/vnd.dsse.envelope", "an attestation"},
	{"application/vnd.in-toto", "an attestation"},
	{"application/spdx", "a list of software components (SBOM)"},
	{"text/spdx", "a list of software components (SBOM)"},
	{"application/vnd.cyclonedx", "a list of software components (SBOM)"},
	{"application/vnd.syft", "a list of software components (SBOM)"},
	{"application/vnd.buildkit.cacheconfig", "a BuildKit cache"},
	{"application/vnd.cncf.model.", "a machine-learning model"},
	{"application/vnd.docker.ai.", "a machine-learning model"},
	{"application/vnd.ollama.", "a machine-learning model"},
	{"application/vnd.kitops.", "a machine-learning model"},
	{"application/vnd.docker.plugin.", "a Docker plugin"},
	{"application/vnd.docker.compose.", "a Compose application"},
	{"application/vnd.cncf.flux.", "a Flux source"},
	{"application/vnd.cncf.kyverno.", "a bundle of policies"},
	{"application/vnd.cncf.openpolicyagent.", "a bundle of policies"},
	{"application/vnd.sylabs.sif.", "a Singularity image"},
	{"application/vnd.amazon.soci.", "a SOCI index"},
	{"application/vnd.oci.image.layer.nydus.", "an image of Nydus layers, which are not archives"},
	{"application/vnd.erofs.", "an image of EROFS layers, which are not archives"},
	{"application/vnd.containerd.container.", "a checkpoint of a container"},
}

// Kind returns a name with an article for content of a media type, "" for layers, configs and unknown media types.
func Kind(mediaType string) string {
	if Encrypted(mediaType) {
		return "an encrypted image, which has to be decrypted first"
	}
	for _, k := range kinds {
		if strings.HasPrefix(mediaType, k.prefix) {
			return k.name
		}
	}
	return ""
}

// Encrypted reports whether blobs of the media type are encrypted layers.
func Encrypted(mediaType string) bool {
	_, suffixes, _ := strings.Cut(mediaType, "+")
	return suffixes == "encrypted" || strings.HasSuffix(suffixes, "+encrypted")
}

// NotRootfs returns an ErrNotRootfs for content of a media type.
func NotRootfs(mediaType string) error {
	if name := Kind(mediaType); name != "" {
		return notRootfs{name}
	}
	return notRootfs{fmt.Sprintf("content of media type %.100q", mediaType)}
}

// Manifest returns an ErrNotRootfs that names the artifact, unless the media types of m are those of an
// image. It accepts a config of a generic media type, because its content decides.
func Manifest(m *ocispec.Manifest) error {
	unknown := ""
	for _, l := range m.Layers {
		if Encrypted(l.MediaType) {
			return NotRootfs(l.MediaType)
		}
		if !Layer(l.MediaType) && unknown == "" {
			unknown = l.MediaType
		}
	}
	if unknown == "" && Config(m.Config.MediaType) {
		return nil
	}
	all := []string{m.ArtifactType, m.Config.MediaType}
	for _, l := range m.Layers {
		all = append(all, l.MediaType)
	}
	for _, t := range all {
		if Kind(t) != "" {
			return NotRootfs(t)
		}
	}
	if images.IsConfigType(m.Config.MediaType) && m.ArtifactType == "" {
		return notRootfs{fmt.Sprintf("an image with layers of media type %.100q", unknown)}
	}
	return artifact(m, unknown)
}

// Artifact returns an ErrNotRootfs for a manifest whose config has a generic media type and is not the config of an
// image.
func Artifact(m *ocispec.Manifest) error {
	if Kind(m.ArtifactType) != "" {
		return NotRootfs(m.ArtifactType)
	}
	return artifact(m, "")
}

// artifact names a manifest with unknown media types by the most telling one of them. layer is the media type of a
// layer.
func artifact(m *ocispec.Manifest, layer string) error {
	for _, t := range []string{m.ArtifactType, m.Config.MediaType, layer} {
		if t != "" && t != ocispec.MediaTypeEmptyJSON && !Config(t) {
			return notRootfs{fmt.Sprintf("an artifact of type %.100q", t)}
		}
	}
	return notRootfs{"an artifact"}
}

// Index returns an ErrNotRootfs if an index lists content other than manifests, as the index of a BuildKit
// cache does. Otherwise it returns nil.
func Index(entries []ocispec.Descriptor) error {
	for _, e := range entries {
		if strings.HasPrefix(e.MediaType, "application/vnd.buildkit.cacheconfig") {
			return NotRootfs(e.MediaType)
		}
	}
	return nil
}
