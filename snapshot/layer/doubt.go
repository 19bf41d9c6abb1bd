package layer

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// Doubt has the rootfs of a manifest and the layers with these diff IDs compared with their seals before they are
// served again, even if this process made them.
func (s *Store) Doubt(manifest digest.Digest, diffIDs []digest.Digest) error {
	var nodes []metadata.Node
	if err := s.db.View(func(tx *metadata.Tx) error {
		if _, err := tx.Rootfs(manifest); err == nil {
			nodes = append(nodes, metadata.RootfsNode(manifest))
		}
		for _, d := range diffIDs {
			if l, err := tx.Layer(metadata.LayerKey(d)); err == nil {
				nodes = append(nodes, metadata.LayerNode(l.Key))
			}
		}
		return nil
	}); err != nil {
		return err
	}
	s.doubts.Add(nodes...)
	return nil
}

// CompareAll compares in the background all layers that are in doubt with their seals, so that no Prepare has to wait
// for a comparison. A rootfs is not compared.
func (s *Store) CompareAll() {
	suspects := s.doubts.All()
	if len(suspects) == 0 {
		return
	}
	s.work.Go("comparison", func(ctx context.Context) error {
		var errs []error
		for _, n := range suspects {
			if ctx.Err() != nil || n.Kind != metadata.KindLayer {
				continue
			}
			if _, err := s.Intact(ctx, n.Key); !errdefs.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// trusted ends the doubt about a node that equals its seal. Its bytes may not be on the disk yet, so trusted schedules
// a sync, unless the root is only read. version is the layer's directory or durable.RootfsVersion.
func (s *Store) trusted(n metadata.Node, version string) {
	s.doubts.Remove(n)
	if s.opts.ReadOnly {
		return
	}
	s.syncer.Add(n, version)
	s.SyncSoon()
}

// replaced ends the doubt about a node, and drops its sync, after the node was deleted or replaced by a durable one.
func (s *Store) replaced(n metadata.Node) {
	s.doubts.Remove(n)
	s.syncer.Drop(n)
}
