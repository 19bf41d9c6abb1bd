package resolver_test

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/resolver/auth"
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
	image, err := r.Fetch(ctx, store, ref, target, &linux, nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(len(image.Layers), "layer,", image.Fetched, "blobs fetched")
	// Output: 1 layer, 3 blobs fetched
}

func ExampleResolver_Blob() {
	registry := registrytest.Start()
	defer registry.Close()
	layer := registry.Blob(ocispec.MediaTypeImageLayer, []byte("a tar stream"))
	registry.Image("1.0", ocispec.Platform{OS: "linux", Architecture: "amd64"}, []ocispec.Descriptor{layer},
		[]digest.Digest{layer.Digest})

	ctx := context.Background()
	r, err := resolver.New(&resolver.Options{
		Credentials: auth.DockerConfig(""),
		Tokens:      resolver.NewTokenCache(), // may be shared by all resolvers of a program
	})
	if err != nil {
		panic(err)
	}
	ref, err := resolver.NewReference(registry.Host, "hello", "1.0")
	if err != nil {
		panic(err)
	}
	m, err := r.Manifest(ctx, ref)
	if err != nil {
		panic(err)
	}
	blob, err := r.Blob(ctx, ref, m.Manifest.Layers[0])
	if err != nil {
		panic(err)
	}
	defer blob.Close()
	data, err := io.ReadAll(blob) // an error unless digest and size are right
	if err != nil {
		panic(err)
	}
	fmt.Println(m.MediaType)
	fmt.Println(string(data))
	// Output:
	// application/vnd.oci.image.manifest.v1+json
	// a tar stream
}
