package tank

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// unpacking unpacks the layers of one pull while they are fetched. A failure cancels the fetch.
type unpacking struct {
	p      *pull
	cancel context.CancelFunc
	group  sync.WaitGroup
	rootfs string // the path of an intact rootfs in the root; "": the layers have to be unpacked

	mu   sync.Mutex // guards the fields below
	want map[digest.Digest][]layer.Pair
	recs map[digest.Digest]metadata.Layer // by diff ID
	err  error                            // the first error
}

// newUnpacking also returns the context of the fetch, which ends with the first failure.
func newUnpacking(ctx context.Context, p *pull) (*unpacking, context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	return &unpacking{
		p: p, cancel: cancel, want: map[digest.Digest][]layer.Pair{}, recs: map[digest.Digest]metadata.Layer{},
	}, ctx
}

// image is called when the layers of the image are known.
func (u *unpacking) image(ctx context.Context, i *resolver.Image) error {
	t := u.p.t
	if u.p.opts.Refresh {
		nodes := []metadata.Node{metadata.RootfsNode(i.Manifest.Digest)}
		for _, d := range i.DiffIDs {
			nodes = append(nodes, metadata.LayerNode(metadata.LayerKey(d)))
		}
		if err := t.snapshots.Layers().Doubt(nodes...); err != nil {
			return err
		}
	}
	if !u.p.opts.NoRootfs && !t.daemon {
		// Layers are not kept in this root, so an intact rootfs saves all work. A root that keeps layers
		// looks at the rootfs last, because that is cheaper.
		path, err := t.snapshots.Layers().Rootfs(ctx, u.p.holder, i.Manifest.Digest)
		if err == nil || !errdefs.IsNotFound(err) {
			u.rootfs = path
			return err
		}
	}
	if err := t.content.For(u.p.holder).CheckSpace(ctx, i.Layers, u.p.opts.Refresh); err != nil {
		return fmt.Errorf("image %s: %w", u.p.ref, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var announce []layer.Pair
	for _, l := range layersOf(i.Layers, i.DiffIDs) {
		u.want[l.Blob.Digest] = append(u.want[l.Blob.Digest], l)
		if _, here := t.content.Size(l.Blob.Digest); !here || !u.p.opts.Refresh {
			announce = append(announce, l) // with Refresh, a blob is read only after it was downloaded again
		}
	}
	t.snapshots.Layers().Announce(announce)
	return nil
}

// layer is called when a blob is complete. By then most of its layer is unpacked.
func (u *unpacking) layer(ctx context.Context, blob ocispec.Descriptor) error {
	u.mu.Lock()
	layers := u.want[blob.Digest]
	u.mu.Unlock()
	for _, l := range layers {
		u.group.Add(1)
		go func() {
			defer u.group.Done()
			rec, err := u.p.t.snapshots.Layers().Unpack(ctx, u.p.holder, l)
			if err != nil {
				u.fail(fmt.Errorf("image %s: %w", u.p.ref, err))
				return
			}
			u.mu.Lock()
			u.recs[l.DiffID] = rec
			u.mu.Unlock()
		}()
	}
	return nil
}

// fail records the first error and cancels the fetch. Later errors are consequences of the first.
func (u *unpacking) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.err = err
	}
	u.cancel()
}

// wait waits until all layers are unpacked, and returns the first error. err is the error of the fetch.
func (u *unpacking) wait(err error) error {
	if err != nil {
		u.fail(err)
	}
	u.group.Wait()
	u.cancel()
	return u.err
}

// records returns the records of the layers of a platform, lowest first.
func (u *unpacking) records(c metadata.Platform) []metadata.Layer {
	recs := make([]metadata.Layer, len(c.DiffIDs))
	for i, d := range c.DiffIDs {
		recs[i] = u.recs[d]
	}
	return recs
}

func layersOf(blobs []ocispec.Descriptor, diffIDs []digest.Digest) []layer.Pair {
	layers := make([]layer.Pair, len(blobs))
	for i, b := range blobs {
		layers[i] = layer.Pair{Blob: b, DiffID: diffIDs[i]}
	}
	return layers
}

// unpack unpacks the layers of a platform that are not unpacked yet, and has the pull hold them.
func (p *pull) unpack(ctx context.Context, c metadata.Platform) ([]metadata.Layer, error) {
	recs := make([]metadata.Layer, len(c.Layers))
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range layersOf(c.Layers, c.DiffIDs) {
		g.Go(func() (err error) {
			recs[i], err = p.t.snapshots.Layers().Unpack(ctx, p.holder, l)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("image %s: %w", p.ref, err)
	}
	p.warnDropped(recs)
	return recs, nil
}

// warnDropped warns once for each layer that lacks extended attributes.
func (p *pull) warnDropped(layers []metadata.Layer) {
	warned := map[string]bool{}
	for _, l := range layers {
		if text := layer.DroppedXattrs(l); text != "" && !warned[l.Key] {
			warned[l.Key] = true
			p.log("%s%s", WarningPrefix, text)
		}
	}
}
