package tank_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// The first pull downloads an image. Later pulls of it need no network.
func Example() {
	reg := registrytest.Start() // stands for a registry; its image has one empty layer
	defer reg.Close()
	empty := make([]byte, 1024)
	layer := reg.Blob(ocispec.MediaTypeImageLayer, empty)
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{digest.FromBytes(empty)})

	dir, err := os.MkdirTemp("", "tank")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t, err := tank.Open(filepath.Join(dir, "root"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	for _, opts := range []*tank.PullOptions{nil, {Offline: true}} {
		img, err := t.Pull(context.Background(), reg.Host+"/hello:1", opts)
		if err != nil {
			log.Fatal(err)
		}
		entries, err := os.ReadDir(img.Rootfs)
		fmt.Println("cached:", img.Cached, "entries:", len(entries), err)
	}
	// Output:
	// cached: false entries: 0 <nil>
	// cached: true entries: 0 <nil>
}
