package plugin

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// labelManifest comes with a Prepare when containerd is told to pass annotations to the snapshotter.
const labelManifest = "containerd.io/snapshot/cri.manifest-digest"

// Layers unpacks layers for a snapshotter.
type Layers interface {
	// Announce names the layers that will be wanted. It returns at once.
	Announce(layers []layer.Pair)
	// Fits returns an error if a blob that is here has another size than its layer's descriptor.
	Fits(layers []layer.Pair) error
}

// announcer is a snapshotter that finds out, at a Prepare for an extraction, which layers will follow.
type announcer struct {
	snapshots.Snapshotter
	layers Layers
	recent *recentBlobs // nil without a content store
}

// Cleanup passes containerd's call on; embedding would hide that the snapshotter can do it.
func (a *announcer) Cleanup(ctx context.Context) error {
	if c, ok := a.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

// Prepare announces the layers of the image to which the extraction belongs, then prepares.
func (a *announcer) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if a.recent != nil {
		var base snapshots.Info
		for _, o := range opts {
			if err := o(&base); err != nil {
				return nil, err
			}
		}
		if err := a.announce(ctx, key, base.Labels); err != nil {
			return nil, fmt.Errorf("snapshot %.200q: %w", key, err)
		}
	}
	return a.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// announce returns errdefs.ErrFailedPrecondition for an image that a pull without containerd would refuse,
// because its documents can be read in another way than containerd does. A layer that is not announced here
// is unpacked when it is applied.
func (a *announcer) announce(ctx context.Context, key string, labels map[string]string) error {
	target := labels[snapshots.LabelSnapshotRef]
	if target == "" {
		target = extractionTarget(key)
	}
	if target == "" {
		return nil
	}
	layers, err := a.recent.due(ctx, target, labels[labelManifest], a.layers.Fits)
	if err == nil && layers != nil {
		a.layers.Announce(layers)
	}
	return err
}

// extractionTarget is the chain ID in the key of an extraction ("<ns>/<seq>/extract-<unique> <chain ID>"),
// for pulls that carry no labels.
func extractionTarget(key string) string {
	name := key[strings.LastIndexByte(key, '/')+1:]
	if !strings.HasPrefix(name, "extract-") {
		return ""
	}
	_, target, _ := strings.Cut(name, " ")
	return target
}
