package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
)

// client connects to containerd as Go programs do, in the namespace of ctr's commands.
func (c *Containerd) client() (context.Context, *containerd.Client) {
	c.env.t.Helper()
	client, err := containerd.New(c.Socket)
	if err != nil {
		c.env.t.Fatal(err)
	}
	c.env.t.Cleanup(func() { _ = client.Close() })
	return namespaces.WithNamespace(context.Background(), c.Namespace), client
}

// prober prepares snapshots without pause, and records how long each Prepare took.
type prober struct {
	remove func(key string) error
	stop   func()
	wg     sync.WaitGroup
	keys   []string
	took   []time.Duration
	errs   []error
}

// probePrepare starts a prober on the snapshotter tank. It removes nothing before its end: a Remove
// waits for the same locks.
func (c *Containerd) probePrepare(parent string) *prober {
	c.env.t.Helper()
	ctx, client := c.client()
	s := client.SnapshotService("tank")
	running, cancel := context.WithCancel(ctx)
	p := &prober{stop: cancel, remove: func(key string) error { return s.Remove(ctx, key) }}
	kept := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "true"})
	p.wg.Go(func() {
		for running.Err() == nil {
			key := c.env.Name("probe")
			begin := time.Now()
			if _, err := s.Prepare(ctx, key, parent, kept); err != nil {
				p.errs = append(p.errs, err)
				return
			}
			p.took = append(p.took, time.Since(begin))
			p.keys = append(p.keys, key)
			time.Sleep(50 * time.Millisecond) // each call waits for the disk several times, and so do the deletions
		}
	})
	return p
}

// end stops the prober, reports and returns the slowest answer.
func (p *prober) end(t *testing.T, what string) time.Duration {
	t.Helper()
	p.stop()
	p.wg.Wait()
	for _, key := range p.keys {
		p.errs = append(p.errs, p.remove(key))
	}
	if err := errors.Join(p.errs...); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if len(p.took) < 5 {
		t.Fatalf("%s: only %d calls of Prepare", what, len(p.took))
	}
	slices.Sort(p.took)
	slowest := p.took[len(p.took)-1]
	t.Logf("%s: %d calls of Prepare, median %v, slowest %v", what, len(p.took),
		p.took[len(p.took)/2].Round(time.Microsecond), slowest)
	return slowest
}

// leaveSnapshots makes n active snapshots. The returned function has containerd collect them, and everything
// else that is garbage by then.
func (c *Containerd) leaveSnapshots(n int) (collect func()) {
	c.env.t.Helper()
	ctx, client := c.client()
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		c.env.t.Fatal(err)
	}
	held := leases.WithLease(ctx, lease.ID)
	for i := range n {
		if _, err := client.SnapshotService("tank").Prepare(held, fmt.Sprintf("left-%d", i), ""); err != nil {
			c.env.t.Fatal(err)
		}
	}
	return func() {
		c.env.t.Helper()
		if err := client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
			c.env.t.Fatal(err)
		}
	}
}

// collectionImages are an image of many small files, and one of many small layers.
func collectionImages(t *testing.T) (files, layers BuiltImage) {
	t.Helper()
	var wide []blobLayer
	for l := range 5 {
		var entries []Entry
		for i := range 10000 {
			entries = append(entries, file(fmt.Sprintf("wide/%d/%d/f%05d", l, i/500, i), 0o644, fmt.Sprintln(l, i)))
		}
		wide = append(wide, gzipLayer(t, entries...))
	}
	var long []blobLayer
	for i := range 120 {
		long = append(long, gzipLayer(t, file(fmt.Sprintf("layer/%d", i), 0o644, fmt.Sprintln(i))))
	}
	return rawImage(t, wide...), rawImage(t, long...)
}

// TestPrepareDuringCollection: while containerd's collector removes 50,000 files, hundreds of snapshots
// and hundreds of blobs, a Prepare is answered within a second.
func TestPrepareDuringCollection(t *testing.T) {
	e := New(t)
	k, c, r := e.NewNode()
	files, layers := collectionImages(t)
	r.PushBuilt(files, "test/files:1")
	r.PushBuilt(layers, "test/layers:1")
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)

	ref := func(name string) string { return TestRegistry + "/test/" + name }
	c.Pull(ref("own:1"))
	p := c.probePrepare(topSnapshot(f.Image))
	c.Pull(ref("files:1"))
	c.Pull(ref("layers:1"))
	if slowest := p.end(t, "while images are pulled"); slowest > 5*time.Second {
		t.Errorf("a Prepare during a pull took %v", slowest)
	}
	release := c.leaveSnapshots(300)
	p = c.probePrepare(topSnapshot(f.Image))
	begin := time.Now()
	c.Ctr("images", "rm", ref("files:1"), ref("layers:1"))
	release()
	t.Logf("the collection took %v", time.Since(begin))
	if slowest := p.end(t, "during the collection"); slowest > time.Second {
		t.Errorf("a Prepare during a collection took %v", slowest)
	}
	if got := c.Run(ref("own:1"), e.Name("hello")); got != helloText {
		t.Errorf("printed %q", got)
	}
	c.RemoveImage(ref("own:1"))
	k.MustRun("gc")
	checkEmpty(t, k)
}

// topSnapshot is the name of an image's topmost snapshot: its chain ID.
func topSnapshot(img Image) string {
	return identity.ChainID(slices.Clone(img.DiffIDs)).String()
}
