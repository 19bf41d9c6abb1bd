package content_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	ctrcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/metadata"
)

// Two holders share one blob. The second one adopts it by asking for it, and keeps it when the
// first one deletes it.
func Example() {
	root, err := os.MkdirTemp("", "tank-")
	check(err)
	defer os.RemoveAll(root)
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), nil)
	check(err)
	defer db.Close()
	store, err := content.Open(root, db, nil)
	check(err)
	defer store.Close()

	ctx := context.Background()
	data := []byte("hello from tank\n")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	pull, containerd := store.For(metadata.PullHolder("hello")), store.For(metadata.Containerd)

	check(ctrcontent.WriteBlob(ctx, pull, "layer-"+desc.Digest.String(), bytes.NewReader(data), desc))
	_, err = containerd.Info(ctx, desc.Digest)
	check(err)
	check(pull.Delete(ctx, desc.Digest))

	r, err := store.Open(ctx, desc.Digest)
	check(err)
	defer r.Close()
	_, err = io.Copy(os.Stdout, r)
	check(err)

	check(containerd.Delete(ctx, desc.Digest))
	stats, err := store.Sweep(ctx)
	check(err)
	fmt.Printf("swept %d blob of %d bytes\n", stats.Blobs, stats.Bytes)
	// Output:
	// hello from tank
	// swept 1 blob of 16 bytes
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
