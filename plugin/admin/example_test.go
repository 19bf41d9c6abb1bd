package admin_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/plugin/admin"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// A program pulls through the same interface whether it or a daemon owns the root.
func Example() {
	registry := registrytest.Start() // stands for a registry; its image has one empty layer
	defer registry.Close()
	empty := make([]byte, 1024)
	layer := registry.Blob(ocispec.MediaTypeImageLayer, empty)
	registry.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{digest.FromBytes(empty)})
	dir, err := os.MkdirTemp("", "tank")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
	ctx := context.Background()
	pull := func(s tank.Service) error {
		image, err := s.Pull(ctx, registry.Host+"/hello:1", nil)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(image.Rootfs)
		fmt.Println("cached:", image.Cached, "entries:", len(entries), err)
		return nil
	}

	// No other process owns the root, so this process owns it until the function returns.
	if err := admin.Reach(ctx, root, nil, pull); err != nil {
		fmt.Println(err)
	}

	// Now a daemon owns the root, and pulls for this program.
	daemon, err := tank.Open(root, &tank.Options{Daemon: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer daemon.Close()
	listener, err := admin.Listen(ctx, root)
	if err != nil {
		fmt.Println(err)
		return
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- admin.Serve(serving, listener, daemon, nil) }()
	if err := admin.Reach(ctx, root, nil, pull); err != nil {
		fmt.Println(err)
	}
	stop()
	fmt.Println("served:", <-served)
	// Output:
	// cached: false entries: 0 <nil>
	// cached: true entries: 0 <nil>
	// served: <nil>
}
