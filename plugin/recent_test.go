package plugin_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// countedStore counts how often each blob is opened.
type countedStore struct {
	content.Store
	mu     sync.Mutex // guards opened
	opened map[digest.Digest]int
}

func (c *countedStore) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	c.mu.Lock()
	c.opened[d.Digest]++
	c.mu.Unlock()
	return c.Store.ReaderAt(ctx, d)
}

// countedLayers counts how often each layer is announced.
type countedLayers struct {
	plugin.Layers
	mu        sync.Mutex // guards announced
	announced map[digest.Digest]int
}

func (c *countedLayers) Announce(layers []layer.Pair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range layers {
		c.announced[l.DiffID]++
	}
}

func (c *countedLayers) Fits([]layer.Pair) error { return nil }

// noSnapshots accepts every Prepare and creates nothing.
type noSnapshots struct{ snapshots.Snapshotter }

func (noSnapshots) Prepare(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, nil
}

// TestAnnouncedOnce shows that many simultaneous pulls of few images read each manifest and each
// config once and announce each image once, with the labels of containerd and without them.
func TestAnnouncedOnce(t *testing.T) {
	requireRoot(t)
	const images, pulls = 5, 100
	for _, labelled := range []bool{true, false} {
		t.Run(fmt.Sprintf("labelled=%v", labelled), func(t *testing.T) {
			w := start(t)
			store := &countedStore{Store: w.blobs.For(metadata.Containerd), opened: map[digest.Digest]int{}}
			layers := &countedLayers{announced: map[digest.Digest]int{}}
			conn := dial(t, plugin.New(&plugin.Options{Content: store, Snapshotter: noSnapshots{}, Layers: layers}))
			cs := contentproxy.NewContentStore(conn)
			sn := snapshotproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "tank")
			var all []*image
			for n := range images {
				i := build(t, []Item{F("base", "the same")}, []Item{F("a", fmt.Sprint(n))},
					[]Item{F("b", fmt.Sprint(n))})
				for _, d := range append([]ocispec.Descriptor{i.manifest, i.config}, i.layers[0].Blob,
					i.layers[1].Blob) {
					if _, err := cs.Info(t.Context(), d.Digest); err != nil {
						put(t.Context(), t, cs, d, i.docs[d.Digest])
					}
				}
				all = append(all, i)
			}
			var wg sync.WaitGroup
			for p := range pulls {
				wg.Go(func() {
					i := all[p%images]
					for n, chain := range i.chains {
						labels := map[string]string{snapshots.LabelSnapshotRef: chain}
						if labelled {
							labels["containerd.io/snapshot/cri.manifest-digest"] = i.manifest.Digest.String()
						}
						key := fmt.Sprintf("default/%d/extract-%d-%d %s", p, p, n, chain)
						if _, err := sn.Prepare(t.Context(), key, "", snapshots.WithLabels(labels)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			for n, i := range all {
				if got := store.opened[i.manifest.Digest]; got != 1 {
					t.Errorf("image %d: the manifest was read %d times", n, got)
				}
				// without labels it is also read as a possible manifest
				if got := store.opened[i.config.Digest]; got < 1 || got > 2 {
					t.Errorf("image %d: the config was read %d times", n, got)
				}
				// A pull that takes longer than a second announces again.
				if got := layers.announced[i.layers[2].DiffID]; got < 1 || got > 10 {
					t.Errorf("image %d: announced %d times", n, got)
				}
			}
		})
	}
}

// dial serves s until the test ends and returns a connection to it.
func dial(t *testing.T, s *plugin.Server) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() {
		must(t, conn.Close())
		stop()
		must(t, <-served)
	})
	return conn
}

// TestOtherDocuments shows that labels with arbitrary digests, and blobs that resemble the
// documents of an image, make no Prepare fail and announce nothing.
func TestOtherDocuments(t *testing.T) {
	requireRoot(t)
	i := build(t, []Item{F("a", "1")})
	chain := digest.FromString("another chain").String()
	for name, row := range map[string]struct {
		label  string
		target string
	}{
		"no digest":              {"latest", chain},
		"nothing there":          {digest.FromString("nothing").String(), i.chains[0]},
		"a layer":                {i.layers[0].Blob.Digest.String(), i.chains[0]},
		"a config":               {i.config.Digest.String(), i.chains[0]},
		"an image without it":    {i.manifest.Digest.String(), chain},
		"nothing, a wrong chain": {"", chain},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			layers := &countedLayers{announced: map[digest.Digest]int{}}
			conn := dial(t, plugin.New(&plugin.Options{
				Content: w.blobs.For(metadata.Containerd), Snapshotter: noSnapshots{}, Layers: layers,
			}))
			cs := contentproxy.NewContentStore(conn)
			sn := snapshotproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "tank")
			for d, data := range i.docs {
				put(t.Context(), t, cs, ocispec.Descriptor{Digest: d, Size: int64(len(data))}, data)
			}
			labels := map[string]string{snapshots.LabelSnapshotRef: row.target}
			if row.label != "" {
				labels["containerd.io/snapshot/cri.manifest-digest"] = row.label
			}
			for n := range 3 {
				key := fmt.Sprintf("default/%d/extract-%d %s", n, n, row.target)
				if _, err := sn.Prepare(t.Context(), key, "", snapshots.WithLabels(labels)); err != nil {
					t.Error(err)
				}
			}
			if len(layers.announced) != 0 {
				t.Errorf("announced %v", layers.announced)
			}
		})
	}
}
