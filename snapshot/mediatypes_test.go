package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

func zstded(t *testing.T, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	must(t, err)
	return z.EncodeAll(data, nil)
}

// windowed returns an empty zstd frame with a window of 1<<log bytes.
func windowed(log byte) []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3, 0x01, 0x00, 0x00}
}

// TestMediaTypes shows that Unpack and Apply detect the compression from the bytes, whatever the
// media type of the layer claims, and that the diff ID decides whether the result is right.
func TestMediaTypes(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(metadata.Containerd)
	const oci, docker = "application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."
	for n, mediaType := range []string{
		oci + "v1.tar", oci + "v1.tar+gzip", oci + "v1.tar+zstd",
		oci + "nondistributable.v1.tar", oci + "nondistributable.v1.tar+gzip", oci + "nondistributable.v1.tar+zstd",
		docker + "diff.tar", docker + "diff.tar.gzip", docker + "diff.tar.zstd",
		docker + "foreign.diff.tar", docker + "foreign.diff.tar.gzip", docker + "foreign.diff.tar.zstd",
	} {
		for c, compress := range []func([]byte) []byte{
			bytes.Clone,
			func(b []byte) []byte { return Gzip(t, b) },
			func(b []byte) []byte { return zstded(t, b) },
		} {
			for _, containerd := range []bool{false, true} {
				name := fmt.Sprint(n, " ", c, " ", containerd)
				tar := Tar(t, F("a", name))
				blob := compress(tar)
				d := digest.FromBytes(blob)
				w.blobs[d] = blob
				desc := ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
				if !containerd {
					_, err := w.Layers().Unpack(ctx, holder, layer.Pair{Blob: desc, DiffID: digest.FromBytes(tar)})
					if err != nil {
						t.Errorf("%s, % x: %v", mediaType, blob[:4], err)
					}
					wrong := layer.Pair{Blob: desc, DiffID: digest.FromBytes(blob[1:])}
					if _, err = w.Layers().Unpack(ctx, holder, wrong); !errdefs.IsFailedPrecondition(err) {
						t.Errorf("%s, % x, with another diff ID: %v", mediaType, blob[:4], err)
					}
					continue
				}
				mounts, err := sn.Prepare(ctx, name, "")
				must(t, err)
				got, err := w.Apply(ctx, desc, mounts)
				if err != nil || got.Digest != digest.FromBytes(tar) {
					t.Errorf("%s, % x, applied: %v, %v", mediaType, blob[:4], got.Digest, err)
				}
			}
		}
	}
	mounts, err := sn.Prepare(ctx, "key", "")
	must(t, err)
	_, err = w.Apply(ctx, ocispec.Descriptor{MediaType: oci + "v1.tar+gzip+encrypted", Digest: digest.FromString("x")},
		mounts)
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "this is an encrypted image") {
		t.Errorf("an encrypted layer: %v", err)
	}
}

// TestWindows shows that layers whose windows exceed the memory budget together are unpacked one
// after the other, and that an invalid layer that waits for memory does not block the others.
func TestWindows(t *testing.T) {
	requireRoot(t)
	w := open(t)
	var layers []layer.Pair
	for n := range 3 {
		tar := Tar(t, F("a", fmt.Sprint(n)))
		if n == 2 {
			tar[0] ^= 1 // a wrong checksum in the header
		}
		frames := [][]byte{zstded(t, tar[:512]), windowed(27), zstded(t, tar[512:])}
		blob := bytes.Join(frames, nil)
		l := layer.Pair{DiffID: digest.FromBytes(tar), Blob: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerZstd, Digest: digest.FromBytes(blob), Size: int64(len(blob)),
		}}
		w.blobs[l.Blob.Digest] = blob
		layers = append(layers, l)
	}
	var all sync.WaitGroup
	for n, l := range layers {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if _, err := w.Layers().Unpack(ctx, holder, l); errors.Is(err, stream.ErrInvalidLayer) != (n == 2) ||
				n < 2 && err != nil {
				t.Errorf("layer %d: %v", n, err)
			}
		})
	}
	all.Wait()
}
