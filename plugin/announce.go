package plugin

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/snapshot"
)

// labelManifest comes with a Prepare when containerd is told to pass annotations to the snapshotter.
const labelManifest = "containerd.io/snapshot/cri.manifest-digest"

// Layers unpacks layers for a snapshotter.
type Layers interface {
	// Announce names the layers that will be wanted. It returns at once.
	Announce(layers []snapshot.Layer)
	// Apply has a layer unpacked for the snapshot that the mounts belong to and returns its diff ID.
	Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error)
}

type applier struct{ layers Layers }

// Apply serves containerd's diff service.
func (a applier) Apply(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	return a.layers.Apply(ctx, desc, mounts)
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
		a.announce(ctx, key, base.Labels)
	}
	return a.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// announce never fails: a layer that is not found out here is unpacked when it is applied.
func (a *announcer) announce(ctx context.Context, key string, labels map[string]string) {
	target := labels[snapshots.LabelSnapshotRef]
	if target == "" {
		target = extractionTarget(key)
	}
	if target == "" {
		return
	}
	if layers := a.recent.due(ctx, target, labels[labelManifest]); layers != nil {
		a.layers.Announce(layers)
	}
}

// extractionTarget is the chain ID in the key of an extraction ("<ns>/<seq>/extract-<unique> <chain ID>"), for pulls
// that carry no labels.
func extractionTarget(key string) string {
	name := key[strings.LastIndexByte(key, '/')+1:]
	if !strings.HasPrefix(name, "extract-") {
		return ""
	}
	_, target, _ := strings.Cut(name, " ")
	return target
}
