package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	contentsuite "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	snapshotsuite "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	reflectionapi "google.golang.org/grpc/reflection/grpc_reflection_v1"

	tankcontent "github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// world is a root that is served on a socket, with a client connection.
type world struct {
	root      string
	db        *metadata.DB
	blobs     *tankcontent.Store
	snapshots *snapshot.Store
	conn      *grpc.ClientConn
	socket    string
	close     func() error
}

// serve opens a root and serves it. Closing the world checks the root.
func serve(root string) (*world, error) {
	return serveWith(root, &metadata.Options{NoSync: true})
}

func serveWith(root string, db *metadata.Options) (*world, error) {
	w := &world{root: root}
	var err error
	if w.db, err = metadata.Open(filepath.Join(root, "metadata.db"), db); err != nil {
		return nil, err
	}
	if w.blobs, err = tankcontent.Open(root, w.db, &tankcontent.Options{
		OnIngest: func(d digest.Digest) { w.snapshots.Layers().Ingested(d) },
	}); err != nil {
		return nil, err
	}
	if w.snapshots, err = snapshot.Open(root, w.db, w.blobs, nil); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tank") // a socket's path is short
	if err != nil {
		return nil, err
	}
	w.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	server := plugin.New(&plugin.Options{
		Content: w.blobs.For(metadata.Containerd), Snapshotter: w.snapshots.For(metadata.Containerd),
		Layers: w.snapshots.Layers(), Applier: w.snapshots,
		Drain: time.Second,
	})
	go func() { served <- server.Serve(ctx, l) }()
	if w.conn, err = grpc.NewClient("unix:"+w.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize))); err != nil {
		stop()
		return nil, err
	}
	w.close = func() error {
		err := w.conn.Close()
		stop()
		var faults []error
		report := func(f metadata.Fault) { faults = append(faults, f) }
		err = errors.Join(err, <-served, w.db.Check(report), w.blobs.Check(context.Background(), report),
			w.snapshots.Check(context.Background(), report))
		return errors.Join(
			append(faults, err, w.snapshots.Close(), w.blobs.Close(), w.db.Close(), os.RemoveAll(dir))...)
	}
	return w, nil
}

func start(t *testing.T) *world {
	t.Helper()
	w, err := serve(t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, w.close()) })
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) sn() snapshots.Snapshotter {
	return snapshotproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(w.conn), "tank")
}

// TestSnapshotterSuite runs containerd's suite. It uses the name overlayfs for the same reason as
// the test of package snapshot.
func TestSnapshotterSuite(t *testing.T) {
	requireRoot(t)
	snapshotsuite.SnapshotterSuite(t, "overlayfs",
		func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
			w, err := serve(root)
			if err != nil {
				return nil, nil, err
			}
			return w.sn(), w.close, nil
		})
}

func TestContentSuite(t *testing.T) {
	requireRoot(t)
	contentsuite.ContentSuite(t, "socket",
		func(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
			w, err := serve(root)
			if err != nil {
				return nil, nil, nil, err
			}
			return ctx, contentproxy.NewContentStore(w.conn), w.close, nil
		})
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and in CI nothing may skip")
	}
	t.Skip("needs root")
}

// image is an image of two layers as containerd writes it to the store.
type image struct {
	manifest, config ocispec.Descriptor
	docs             map[digest.Digest][]byte
	layers           []layer.Pair
	chains           []string
}

func build(t *testing.T, layers ...[]Item) *image {
	t.Helper()
	i := &image{docs: map[digest.Digest][]byte{}}
	config, manifest := `{"rootfs":{"type":"layers","diff_ids":[`, ""
	chain := digest.Digest("")
	for n, items := range layers {
		tar := Tar(t, items...)
		gz := Gzip(t, tar)
		l := layer.Pair{Blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip,
			Digest: digest.FromBytes(gz), Size: int64(len(gz))},
			DiffID: digest.FromBytes(tar)}
		i.docs[l.Blob.Digest] = gz
		i.layers = append(i.layers, l)
		if n > 0 {
			config, manifest = config+",", manifest+","
			chain = digest.FromString(chain.String() + " " + l.DiffID.String())
		} else {
			chain = l.DiffID
		}
		i.chains = append(i.chains, chain.String())
		config += fmt.Sprintf("%q", l.DiffID)
		manifest += fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, l.Blob.MediaType, l.Blob.Digest, l.Blob.Size)
	}
	i.config = i.doc(ocispec.MediaTypeImageConfig, config+"]}}")
	i.manifest = i.doc(ocispec.MediaTypeImageManifest,
		fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[%s]}`,
			i.config.MediaType, i.config.Digest, i.config.Size, manifest))
	return i
}

func (i *image) doc(mediaType, body string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(body), Size: int64(len(body))}
	i.docs[d.Digest] = []byte(body)
	return d
}

// ingest writes a blob as containerd's metadata store does: under a ref of its form, without digest
// and media type.
func ingest(ctx context.Context, t *testing.T, cs content.Store, d digest.Digest, data []byte) content.Writer {
	t.Helper()
	w, err := cs.Writer(ctx, content.WithRef("default/1/layer-"+d.String()),
		content.WithDescriptor(ocispec.Descriptor{Size: int64(len(data))}))
	must(t, err)
	return w
}

func put(ctx context.Context, t *testing.T, cs content.Store, d ocispec.Descriptor, data []byte) {
	t.Helper()
	w := ingest(ctx, t, cs, d.Digest, data)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Commit(ctx, d.Size, d.Digest))
}

// TestAnnouncement shows that, from the first Prepare of a pull on, its layers are unpacked while
// they are written, with the labels that containerd passes and without labels.
func TestAnnouncement(t *testing.T) {
	requireRoot(t)
	for _, row := range []struct {
		testName string
		labels   func(*image) map[string]string
	}{
		{"by the label of the manifest", func(i *image) map[string]string {
			return map[string]string{snapshots.LabelSnapshotRef: i.chains[0],
				"containerd.io/snapshot/cri.manifest-digest": i.manifest.Digest.String()}
		}},
		{"by the chain",
			func(i *image) map[string]string { return map[string]string{snapshots.LabelSnapshotRef: i.chains[0]} }},
		{"by the key", func(*image) map[string]string { return nil }},
	} {
		t.Run(row.testName, func(t *testing.T) {
			ctx := context.Background()
			w := start(t)
			cs, sn := contentproxy.NewContentStore(w.conn), w.sn()
			i := build(t, []Item{F("a", "1")}, []Item{F("b", "2")})
			put(ctx, t, cs, i.manifest, i.docs[i.manifest.Digest])
			put(ctx, t, cs, i.config, i.docs[i.config.Digest])
			_, err := sn.Prepare(ctx, "default/2/extract-1 "+i.chains[0], "", snapshots.WithLabels(row.labels(i)))
			must(t, err)
			// The second layer arrives first, and only in part.
			data := i.docs[i.layers[1].Blob.Digest]
			wr := ingest(ctx, t, cs, i.layers[1].Blob.Digest, data)
			defer wr.Close()
			_, err = wr.Write(data[:len(data)-1])
			must(t, err)
			pattern := filepath.Join(filepath.Dir(w.blobs.Path(i.config.Digest)),
				"../../layers/.layer-"+i.layers[1].DiffID.Encoded()[:12]+"-*")
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if found, _ := filepath.Glob(pattern); len(found) == 1 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatal("the unpack did not begin before the blob was complete")
				}
			}
		})
	}
}

// TestForeignMounts shows that Tank leaves mounts that are not its own to another differ.
func TestForeignMounts(t *testing.T) {
	requireRoot(t)
	w := start(t)
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(w.conn))
	_, err := differ.(diff.Comparer).Compare(context.Background(), nil, nil)
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("compare: %v", err)
	}
	_, err = differ.(diff.Applier).Apply(context.Background(), ocispec.Descriptor{},
		[]mount.Mount{{Type: "bind", Source: "/etc"}})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("apply: %v", err)
	}
}

// TestOnlyWhatContainerdHolds shows that containerd's garbage collector sees no blobs of other
// holders.
func TestOnlyWhatContainerdHolds(t *testing.T) {
	requireRoot(t)
	ctx := context.Background()
	w := start(t)
	cs := contentproxy.NewContentStore(w.conn)
	data := []byte("hello")
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	must(t, w.db.Update(func(tx *metadata.Tx) error { return tx.Renew("ref", time.Now()) }))
	put(ctx, t, w.blobs.For(metadata.PullHolder("ref")), d, data)
	seen := 0
	count := func(content.Info) error { seen++; return nil }
	must(t, cs.Walk(ctx, count))
	if seen != 0 {
		t.Errorf("containerd sees %d blobs before its first request", seen)
	}
	_, err := cs.Info(ctx, d.Digest) // a successful Info holds the blob
	must(t, err)
	must(t, cs.Walk(ctx, count))
	if seen != 1 {
		t.Errorf("containerd sees %d blobs after it adopted one", seen)
	}
	must(t, cs.Delete(ctx, d.Digest))
	if _, ok := w.blobs.Size(d.Digest); !ok {
		t.Error("a delete by containerd deleted the blob of another holder")
	}
}

func TestHealth(t *testing.T) {
	requireRoot(t)
	w := start(t)
	reply, err := healthapi.NewHealthClient(w.conn).Check(context.Background(), &healthapi.HealthCheckRequest{})
	if err != nil || reply.GetStatus() != healthapi.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", reply, err)
	}
}

// TestReflection shows that clients such as grpcurl can list the services.
func TestReflection(t *testing.T) {
	requireRoot(t)
	w := start(t)
	stream, err := reflectionapi.NewServerReflectionClient(w.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request := &reflectionapi.ServerReflectionRequest{
		MessageRequest: &reflectionapi.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, s := range reply.GetListServicesResponse().GetService() {
		served[s.GetName()] = true
	}
	for _, name := range []string{"containerd.services.content.v1.Content",
		"containerd.services.snapshots.v1.Snapshots",
		"containerd.services.diff.v1.Diff", "grpc.health.v1.Health"} {
		if !served[name] {
			t.Errorf("%s is not among %v", name, served)
		}
	}
}
