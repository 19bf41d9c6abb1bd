package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/metadata"
)

// readAll collects the data of all messages of a Read and checks their offsets.
func readAll(client contentapi.ContentClient, d string, offset, size int64) (data []byte, err error) {
	stream, err := client.Read(context.Background(),
		&contentapi.ReadContentRequest{Digest: d, Offset: offset, Size: size})
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return data, err
		}
		if m.GetOffset() != int64(len(data)) {
			return data, status.Errorf(codes.Internal, "%d bytes at offset %d, want offset %d", len(m.GetData()),
				m.GetOffset(), len(data))
		}
		data = append(data, m.GetData()...)
	}
}

// TestRead compares the answers of Read with those of containerd's own content service on the same
// store: all bytes and the classes of errors.
func TestRead(t *testing.T) {
	requireRoot(t)
	ctx := context.Background()
	w := start(t)
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	must(t, err)
	s := grpc.NewServer()
	contentapi.RegisterContentServer(s, contentserver.New(w.blobs.For(metadata.Containerd)))
	go s.Serve(l)
	defer s.Stop()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	ours, stock := contentapi.NewContentClient(w.conn), contentapi.NewContentClient(conn)
	random := rand.NewChaCha8([32]byte{2})
	for _, n := range []int64{0, 1, 32<<10 - 32, 32 << 10, 32<<10 + 1, 1<<20 - 32, 1 << 20, 3<<20 + 5} {
		blob := make([]byte, n)
		_, err := random.Read(blob)
		must(t, err)
		d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: n}
		put(ctx, t, contentproxy.NewContentStore(w.conn), d, blob)
		for _, offset := range []int64{math.MinInt64, -1, 0, 1, n / 2, n - 1, n, n + 1, math.MaxInt64} {
			for _, size := range []int64{math.MinInt64, -1, 0, 1, 32 << 10, n - 1, n, n + 1} {
				got, err := readAll(ours, d.Digest.String(), offset, size)
				want, wantErr := readAll(stock, d.Digest.String(), offset, size)
				if status.Code(err) != status.Code(wantErr) || !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %d of %d: %d bytes, %v; containerd's has %d bytes, %v", size, offset, n,
						len(got), err, len(want), wantErr)
				}
			}
		}
		if got, err := readAll(ours, d.Digest.String(), 0, math.MaxInt64); err != nil || !bytes.Equal(got, blob) {
			t.Errorf("read beyond the end of %d bytes: %d bytes, %v", n, len(got), err)
		}
	}
	for _, d := range []string{"", "x", "sha256:../../etc/passwd", digest.FromString("none").String()} {
		_, err := readAll(ours, d, 0, 0)
		if _, want := readAll(stock, d, 0, 0); err == nil || status.Code(err) != status.Code(want) {
			t.Errorf("digest %q: %v; containerd's: %v", d, err, want)
		}
	}
}
