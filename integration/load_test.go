package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// load is the number of images and of pulls, which all run at once, and the content of an image.
type load struct{ images, pulls, layers, files int }

// ordinaryLoad takes seconds. TANK_TEST_LOAD=IMAGES,PULLS is another.
var ordinaryLoad = load{images: 3, pulls: 30, layers: 4, files: 20}

const (
	loadVariable = "TANK_TEST_LOAD"
	// maxLoadRatio is how many times overlayfs's ratio of all pulls to one of each may be.
	maxLoadRatio = 3
	// maxLoadResident is what the daemon may have resident under load.
	maxLoadResident = 256 << 20
)

func selectedLoad(t *testing.T) load {
	l := ordinaryLoad
	if v := os.Getenv(loadVariable); v != "" {
		images, pulls, _ := strings.Cut(v, ",")
		var err error
		if l.images, err = strconv.Atoi(images); err != nil {
			t.Fatalf("%s: %v", loadVariable, err)
		}
		if l.pulls, err = strconv.Atoi(pulls); err != nil {
			t.Fatalf("%s: %v", loadVariable, err)
		}
	}
	return l
}

// TestLoad pulls few images many times at once through containerd. Divided by the time of one pull of each image, this
// is with Tank at most three times what it is with overlayfs, and the daemon stays within its memory.
func TestLoad(t *testing.T) {
	e := New(t)
	l := selectedLoad(t)
	r := e.NewRegistry()
	refs := make([]string, l.images)
	for i := range refs {
		name := fmt.Sprintf("test/load%d:1", i)
		r.PushBuilt(loadImage(t, i, l), name)
		refs[i] = TestRegistry + "/" + name
	}
	overlay := e.NewContainerd(ContainerdOptions{Registries: []*Proxy{r.Proxy}, Name: "o"})
	k, tank := e.startNode(Setup{}, r)
	k.broken = true // a check would take as long as the test
	peak := make(chan int64)
	ended, end := context.WithCancel(t.Context())
	go func() { peak <- peakWhile(ended, k.Daemon()) }()
	for _, apart := range []bool{false, true} {
		var ratios [2]float64
		for i, c := range []*Containerd{overlay, tank} {
			each := c.pullAll(refs, l.images, 1, false)
			c.removeAll(refs)
			all := c.pullAll(refs, l.pulls, l.pulls, apart)
			c.removeAll(refs)
			ratios[i] = all.Seconds() / each.Seconds()
			t.Logf("%s, namespaces apart=%v: %d pulls one by one %v, %d at once %v: %.2f times",
				c.Snapshotter, apart, l.images, each, l.pulls, all, ratios[i])
		}
		if ratios[1] > maxLoadRatio*ratios[0] {
			t.Errorf("namespaces apart=%v: %.1f times, where overlayfs needs %.1f", apart, ratios[1], ratios[0])
		}
	}
	end()
	resident := <-peak
	t.Logf("resident at most %d MiB", resident>>20)
	if resident > maxLoadResident {
		t.Errorf("%d MiB resident, more than %d", resident>>20, maxLoadResident>>20)
	}
}

// loadImage is an image of small layers, each of its own.
func loadImage(t *testing.T, n int, l load) BuiltImage {
	t.Helper()
	layers := make([][]Entry, l.layers)
	for i := range layers {
		for j := range l.files {
			layers[i] = append(layers[i],
				file(fmt.Sprintf("layer%d/file%d", i, j), 0o644, noise(uint64(n<<20|i<<10|j), 2000)))
		}
	}
	b, err := BuildImage(layers, ocispec.ImageConfig{Env: []string{"A=" + noise(uint64(n), 100_000)}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pullAll makes this number of pulls of the references in turn, so many at once, and returns how long that took.
// With apart each pull has a namespace of its own: containerd has every layer prepared again for it.
func (c *Containerd) pullAll(refs []string, pulls, atOnce int, apart bool) time.Duration {
	c.env.t.Helper()
	cl, err := client.New(c.Socket)
	if err != nil {
		c.env.t.Fatal(err)
	}
	defer cl.Close()
	ctx := namespaces.WithNamespace(c.env.t.Context(), c.Namespace)
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range pulls {
		ctx := ctx
		if apart {
			ctx = namespaces.WithNamespace(ctx, fmt.Sprintf("%s-%d", c.Namespace, i))
		}
		g.Go(func() error { return c.pullBy(ctx, cl, refs[i%len(refs)]) })
	}
	if err := g.Wait(); err != nil {
		c.env.t.Fatal(err)
	}
	return time.Since(began)
}

// pullBy pulls ref by the transfer service.
func (c *Containerd) pullBy(ctx context.Context, cl *client.Client, ref string) error {
	from, err := registry.NewOCIRegistry(ctx, ref, registry.WithHostDir(filepath.Join(c.Dir, "hosts")))
	if err != nil {
		return err
	}
	p := platforms.DefaultSpec()
	to := image.NewStore(ref, image.WithPlatforms(p), image.WithAllMetadata, image.WithUnpack(p, c.Snapshotter))
	if err := cl.Transfer(ctx, from, to); err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	return nil
}

// removeAll removes those of the images that are here and waits for the collector.
func (c *Containerd) removeAll(refs []string) {
	c.env.t.Helper()
	for _, ref := range refs {
		c.CtrResult("images", "rm", "--sync", ref)
	}
}

// peakWhile is the greatest resident memory in bytes that p has until ctx ends.
func peakWhile(ctx context.Context, p *Process) int64 {
	return peakMemory(p, &Process{done: doneChannel(ctx)})
}

func doneChannel(ctx context.Context) chan struct{} {
	c := make(chan struct{})
	context.AfterFunc(ctx, func() { close(c) })
	return c
}
