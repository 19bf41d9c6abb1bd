package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// TestFSSuite runs continuity's suite of file system changes. containerd's differ makes a layer of each change.
func TestFSSuite(t *testing.T) {
	requireMounts(t)
	for _, way := range ways {
		t.Run(way, func(t *testing.T) { fstest.FSSuite(t, layerApplier{t, way}) })
	}
}

type layerApplier struct {
	t   *testing.T
	way string
}

// series holds the layers of one test of the suite. The suite passes a context from TestContext to Apply, so the series
// is a value of that context.
type series struct {
	w      *world
	layers []layer.Pair
	dir    string // the tree so far
}

type seriesKey struct{}

func (a layerApplier) TestContext(ctx context.Context) (context.Context, func(), error) {
	open := openAt
	if a.way == "prepared" {
		open = openDirectory
	}
	s := &series{w: open(a.t, a.t.TempDir(), memory{}), dir: filepath.Join(a.t.TempDir(), "tree")}
	return context.WithValue(ctx, seriesKey{}, s), func() {}, os.Mkdir(s.dir, 0o755)
}

func (a layerApplier) Apply(ctx context.Context, change fstest.Applier) (string, func(), error) {
	s := ctx.Value(seriesKey{}).(*series)
	next := fmt.Sprintf("%s-%d", s.dir, len(s.layers))
	if err := errors.Join(os.Mkdir(next, 0o755), fs.CopyDir(next, s.dir), change.Apply(next)); err != nil {
		return "", nil, err
	}
	var tar bytes.Buffer
	if err := archive.WriteDiff(ctx, &tar, s.dir, next); err != nil {
		return "", nil, err
	}
	s.dir, s.layers = next, append(s.layers, s.w.blobs.add(a.t, tar.Bytes()))
	if a.way == "copied" || a.way == "moved" {
		path, err := a.assemble(ctx, s)
		return path, nil, err
	}
	return a.mount(ctx, s)
}

func (a layerApplier) assemble(ctx context.Context, s *series) (string, error) {
	var recs []metadata.Layer
	h := metadata.Holder(fmt.Sprintf("test %d", len(s.layers)))
	for _, l := range s.layers {
		rec, err := s.w.Layers().Unpack(ctx, h, l)
		if err != nil {
			return "", err
		}
		recs = append(recs, rec)
	}
	return s.w.Layers().Assemble(ctx, h, digest.FromString(s.dir), recs,
		&layer.AssembleOptions{Consume: a.way == "moved", NoSync: true})
}

func (a layerApplier) mount(ctx context.Context, s *series) (string, func(), error) {
	ns := fmt.Sprintf("ns %d", len(s.layers))
	sn := s.w.For(holder)
	top, err := extract(ctx, sn, s.w, s.layers, a.way == "mounted parallel", ns)
	if err != nil {
		return "", nil, err
	}
	if a.way == "prepared" {
		mounts, err := sn.Prepare(ctx, "active "+ns, top)
		if err != nil {
			return "", nil, err
		}
		return bound(a.t, mounts, "rw"), nil, nil
	}
	mounts, err := sn.View(ctx, "view "+ns, top)
	if err != nil {
		return "", nil, err
	}
	dir := a.t.TempDir()
	return dir, func() { must(a.t, mount.UnmountAll(dir, 0)) }, mount.All(mounts, dir)
}
