package layer

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// Doubt has layers, fix-ups and root file systems compared with their seals before they are served again, even if this
// process made them. Nodes without a record are left out.
func (s *Store) Doubt(nodes ...metadata.Node) error {
	return s.db.View(func(tx *metadata.Tx) error {
		for _, n := range nodes {
			var err error
			if n.Kind == metadata.KindRootfs {
				_, err = tx.Rootfs(digest.Digest(n.Key))
			} else {
				_, err = tx.Layer(n.Key)
			}
			if err == nil {
				s.doubts.Add(n)
			}
		}
		return nil
	})
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
