package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// build makes a planned fix-up in the new directory staged, and seals it.
func (s *Store) build(ctx context.Context, staged string, p *overlay.Plan) (metadata.Layer, error) {
	return s.buildTree(ctx, staged, p.Tree, p.Copies)
}

// buildTree makes t in the new directory staged, and seals it. After an error nothing of it is left.
func (s *Store) buildTree(ctx context.Context, staged string, t *tree.Node,
	copies map[string]overlay.Source,
) (rec metadata.Layer, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.dir.Trash(staged))
		}
	}()
	err = s.dir.Build(staged, func() error {
		fs := filepath.Join(staged, "fs")
		if err := os.Mkdir(fs, 0o755); err != nil {
			return err
		}
		made, entries, err := overlay.Build(ctx, fs, t, copies, s.opts.UserXattr)
		if err != nil {
			return err
		}
		rec = metadata.Layer{
			PlainMarks: made.PlainMarks, Whiteouts: made.Whiteouts, Inodes: made.Inodes, Size: made.Size,
			Created: time.Now().UTC(),
		}
		return tree.WriteSeal(filepath.Join(staged, "seal"), rec, len(entries), tree.ListOf(entries), true)
	}, nil)
	return rec, err
}
