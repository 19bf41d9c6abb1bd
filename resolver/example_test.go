package resolver_test

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

func ExampleResolver_Fetch() {
	// A registry with an image of one layer.
	registry := registrytest.Start()
	defer registry.Close()
	linux := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	layer := registry.Blob(ocispec.MediaTypeImageLayer, []byte("a tar stream"))
	registry.Image("1.0", linux, []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest})

	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	store, err := local.NewStore(dir)
	if err != nil {
		panic(err)
	}

	ctx := context.Background()
	r, err := resolver.New(nil)
	if err != nil {
		panic(err)
	}
	ref, err := resolver.ParseReference(registry.Host + "/hello:1.0")
	if err != nil {
		panic(err)
	}
	target, err := r.Resolve(ctx, ref)
	if err != nil {
		panic(err)
	}
	image, err := r.Fetch(ctx, store, ref, target, platforms.OnlyStrict(linux), nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(len(image.Layers), "layer,", image.Fetched, "blobs fetched")
	// Output: 1 layer, 3 blobs fetched
}
