// Package mediatype knows the meaning of media types: layers, configs of images, and artifacts without a root
// filesystem.
//
// It owns nothing on disk.
//
// Its invariant: a media type only decides whether bytes are meant to be a layer or a config. It never
// decides how they are compressed, and it proves nothing about the bytes.
//
// The surprising rule: some media types have no meaning, because old clients and registries used them for any
// bytes. A blob of such a type is the config of an image if its content is that of a config.
package mediatype

import (
	"slices"

	"github.com/containerd/containerd/v2/core/images"
)

// layers has the media types of layers that are tar streams, whatever their compression is. The empty media
// type is for callers without one.
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

// generic has the media types without a meaning that old clients and registries gave to configs of images.
var generic = []string{
	"", "application/octet-stream", "application/json", "text/json", "text/plain", "text/html",
}

// Config reports whether blobs of the media type can be configs of images: by its name, or because the media
// type is so general that only the content of the blob decides.
func Config(mediaType string) bool { return images.IsConfigType(mediaType) || Generic(mediaType) }

// Generic reports whether the media type has no meaning.
func Generic(mediaType string) bool { return slices.Contains(generic, mediaType) }
