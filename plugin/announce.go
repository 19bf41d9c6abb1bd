package plugin

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Layers unpacks layers for a snapshotter.
type Layers interface {
	// Announce names layers that will be needed, so that they are unpacked while they are downloaded. It
	// does not wait.
	Announce(layers []layer.Pair)
	// Fits returns an error if the root has a blob whose size is not that of its layer's descriptor.
	Fits(layers []layer.Pair) error
}

// announcer is a snapshotter that finds out, at a Prepare for an extraction, which layers containerd will
// need next, and announces them.
type announcer struct {
	snapshots.Snapshotter
	layers Layers
	recent *recentBlobs // nil without a content store
}

// Cleanup passes containerd's call on, because the embedded interface does not have it.
func (a *announcer) Cleanup(ctx context.Context) error {
	if c, ok := a.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

// Prepare announces the layers of the image to which an extraction belongs, and prepares the snapshot.
func (a *announcer) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if a.recent != nil {
		r, err := snapshot.ParseRequest(key, parent, opts...)
		if err != nil {
			return nil, err
		}
		if err := a.announce(ctx, r); err != nil {
			return nil, fmt.Errorf("snapshot %.200q: %w", key, err)
		}
	}
	return a.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// announce announces the layers of an image at the first Prepare for it. A layer that is never announced is
// unpacked when it is applied. It returns errdefs.ErrFailedPrecondition for an image that Tank's own pull
// would refuse, because containerd reads its documents in another way than other programs.
func (a *announcer) announce(ctx context.Context, r snapshot.Request) error {
	chain := r.ChainID()
	if chain == "" {
		return nil
	}
	layers, err := a.recent.due(ctx, chain, r.Manifest, a.layers.Fits)
	if err == nil && layers != nil {
		a.layers.Announce(layers)
	}
	return err
}
