package plugin_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tankcontent "github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
)

// TestContainerds: who calls containerd's services counts as one until its connection ends, and Tank's own commands do not.
func TestContainerds(t *testing.T) {
	root := t.TempDir()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	defer db.Close()
	blobs, err := tankcontent.Open(root, db, nil)
	must(t, err)
	defer blobs.Close()
	socket := filepath.Join(root, "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	server := plugin.New(&plugin.Options{Content: blobs.For(metadata.Containerd), Admin: fakeAdmin{root}, Drain: time.Second})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	defer func() {
		stop()
		must(t, <-served)
	}()
	expect := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); server.Containerds() != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d containerds, want %d", server.Containerds(), want)
			}
		}
	}
	command, err := plugin.Dial(t.Context(), socket)
	must(t, err)
	defer command.Close()
	expect(0)
	var conns []*grpc.ClientConn
	for n := range 2 {
		conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		conns = append(conns, conn)
		for range 2 {
			_, err := contentapi.NewContentClient(conn).Info(t.Context(), &contentapi.InfoRequest{Digest: digest.FromString("none").String()})
			if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
				t.Fatal(err)
			}
		}
		expect(n + 1)
	}
	for n, conn := range conns {
		must(t, conn.Close())
		expect(len(conns) - n - 1)
	}
}
