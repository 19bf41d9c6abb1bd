// Package mediatype knows what media types stand for: layers, configs of images, and artifacts that have no root
// filesystem.
//
// It owns nothing on disk.
//
// Its invariant: a media type decides only whether bytes are meant to be a layer or a config. It never
// decides how they are compressed, and it does not prove that they are what it states.
//
// The surprising rule: some media types state nothing, because old clients and registries gave them to any bytes. A
// config of such a type is an image's if its content is.
package mediatype

import (
	"slices"

	"github.com/containerd/containerd/v2/core/images"
)

// layers are the media types of layers that are tar streams, however they are compressed. The empty one is
// for callers that have none.
var layers = map[string]bool{
	"":                                       true,
	"application/vnd.oci.image.layer.v1.tar": true,
	"application/vnd.oci.image.layer.v1.tar+gzip":                  true,
	"application/vnd.oci.image.layer.v1.tar+zstd":                  true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.diff.tar":                 true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd":    true,
}

// Layer reports whether blobs of the media type are tar streams, compressed or not.
func Layer(mediaType string) bool { return layers[mediaType] }

// generic are the media types that old clients and registries gave to configs of images.
var generic = []string{
	"", "application/octet-stream", "application/json", "text/json", "text/plain", "text/html",
}

// Config reports whether blobs of the media type are configs of images: by its name, or because it is so general that
// only the content of the blob decides.
func Config(mediaType string) bool { return images.IsConfigType(mediaType) || Generic(mediaType) }

// Generic reports whether the media type does not state what a blob is.
func Generic(mediaType string) bool { return slices.Contains(generic, mediaType) }
