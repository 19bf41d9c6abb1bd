package plugin_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/tank-snapshotter/tank/plugin"
)

// The process that owns a root answers the commands of others on a socket.
func Example() {
	dir, err := os.MkdirTemp("", "tank")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "tank.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- plugin.New(&plugin.Options{Admin: fakeAdmin{"/var/lib/tank"}}).Serve(ctx, listener) }()

	client, err := plugin.Dial(ctx, socket, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("root:", client.Root())
	images, err := client.Images(ctx)
	fmt.Println("images:", len(images), err)
	client.Close()
	stop()
	fmt.Println("served:", <-served)
	// Output:
	// root: /var/lib/tank
	// images: 1 <nil>
	// served: <nil>
}
