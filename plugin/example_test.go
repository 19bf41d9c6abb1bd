package plugin_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
)

// A daemon serves a root to containerd. Each containerd acts for the holder that the binder finds for its
// process.
func Example() {
	dir, err := os.MkdirTemp("", "tank")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	root, err := tank.Open(filepath.Join(dir, "root"), &tank.Options{Daemon: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer root.Close()
	server := plugin.New(&plugin.Options{
		Binder: root.Binder(),
		StoresOf: func(h metadata.Holder) plugin.Stores {
			return plugin.Stores{Content: root.Content().For(h), Snapshotter: root.Snapshots().For(h)}
		},
		Layers: root.Snapshots().Layers(), Applier: root.Snapshots(),
	})
	socket := filepath.Join(dir, "tank.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()

	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println(err)
		return
	}
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	fmt.Println(health.GetStatus(), err)
	conn.Close()
	stop()
	fmt.Println("served:", <-served)
	// Output:
	// SERVING <nil>
	// served: <nil>
}
