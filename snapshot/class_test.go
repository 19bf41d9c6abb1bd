package snapshot_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/errclass/errclasstest"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// classScene is a root that contains work for every function in storeCalls and layerCalls.
type classScene struct {
	*world
	ctx    context.Context
	sn     *snapshot.Snapshotter
	layers *layer.Store
	rec    metadata.Layer // the record of an unpacked layer
	other  layer.Pair     // a layer that is not unpacked
	top    string         // the committed snapshot of the unpacked layer
	plan   *layer.Plan
	built  *layer.Built
}

var manifest = digest.FromString("manifest")

func newClassScene(t *testing.T) *classScene {
	w := openWith(t, t.TempDir(), memory{}, &snapshot.Options{SyncDelay: -1, Unpack: rights()})
	s := &classScene{world: w, ctx: ctx, sn: w.For(holder), layers: w.Layers()}
	first := w.blobs.add(t, Tar(t, D("d"), F("d/a", "1"), H("b", "d/a")))
	s.other = w.blobs.add(t, Tar(t, F("other", "2")))
	var err error
	s.top, err = extract(ctx, s.sn, w, []layer.Pair{first}, false, "ns")
	must(t, err)
	s.rec, err = s.layers.Record(metadata.LayerKey(first.DiffID))
	must(t, err)
	_, err = s.sn.Prepare(ctx, "active", s.top)
	must(t, err)
	_, err = s.layers.Assemble(ctx, holder, manifest, []metadata.Layer{s.rec}, nil)
	must(t, err)
	s.plan, err = s.layers.Plan(ctx, s.rec.Key, nil)
	must(t, err)
	s.built, err = s.layers.BuildRoot(ctx, entry.Entry{Path: ".", Type: entry.Dir, Mode: 0o755})
	must(t, err)
	t.Cleanup(func() { // runs before the cleanup of the world, which would check the damaged root
		if w.Store != nil {
			_ = w.close()
		}
	})
	return s
}

func second[T any](_ T, err error) error { return err }

// storeCalls calls every function of package snapshot that returns an error.
var storeCalls = map[string]func(s *classScene) error{
	"Open": func(s *classScene) error {
		opened, err := snapshot.Open(s.root, s.db, s.blobs, nil)
		if err == nil {
			err = opened.Close()
		}
		return err
	},
	"Clone": func(s *classScene) error {
		return snapshot.Clone(s.ctx, filepath.Join(s.root, "layers"), filepath.Join(s.root, "missing", "to"))
	},
	"DiskUsage": func(s *classScene) error {
		return second(snapshot.DiskUsage(s.ctx, filepath.Join(s.root, "layers")))
	},
	"Store.Apply": func(s *classScene) error {
		mounts, err := s.sn.Mounts(s.ctx, "active")
		if err != nil {
			return err
		}
		return second(s.Apply(s.ctx, s.other.Blob, mounts))
	},
	"Store.Check": func(s *classScene) error { return s.Check(s.ctx, func(metadata.Fault) {}) },
	"Store.CheckSnapshot": func(s *classScene) error {
		return s.CheckSnapshot("active", func(metadata.Fault) {})
	},
	"Store.HandOver": func(s *classScene) error {
		return s.HandOver(holder, "other", func(*metadata.Tx) error { return nil })
	},
	"Store.SetAside": func(s *classScene) error { return s.SetAside(holder, "ns", 1) },
	"Store.Close": func(s *classScene) error {
		closed := s.Store
		s.Store = nil // so that the cleanup does not close it a second time
		return closed.Close()
	},
	"Store.ApplyDecoded": func(s *classScene) error {
		mounts, err := s.sn.Mounts(s.ctx, "active")
		if err != nil {
			return err
		}
		return second(s.ApplyDecoded(s.ctx, s.other.Blob, mounts, nil))
	},
	"Store.Sweep": func(s *classScene) error { return second(s.Sweep(s.ctx)) },

	"Snapshotter.Commit":  func(s *classScene) error { return s.sn.Commit(s.ctx, "committed", "active") },
	"Snapshotter.Remove":  func(s *classScene) error { return s.sn.Remove(s.ctx, "active") },
	"Snapshotter.Prepare": func(s *classScene) error { return second(s.sn.Prepare(s.ctx, "new", s.top)) },
	"Snapshotter.View":    func(s *classScene) error { return second(s.sn.View(s.ctx, "new", s.top)) },
	"Snapshotter.Stat":    func(s *classScene) error { return second(s.sn.Stat(s.ctx, "active")) },
	"Snapshotter.Update": func(s *classScene) error {
		return second(s.sn.Update(s.ctx, snapshots.Info{Name: "active"}))
	},
	"Snapshotter.Usage":  func(s *classScene) error { return second(s.sn.Usage(s.ctx, "active")) },
	"Snapshotter.Mounts": func(s *classScene) error { return second(s.sn.Mounts(s.ctx, "active")) },
	"Snapshotter.Walk": func(s *classScene) error {
		return s.sn.Walk(s.ctx, func(context.Context, snapshots.Info) error { return nil })
	},
	"Snapshotter.Cleanup": func(s *classScene) error { return s.sn.Cleanup(s.ctx) },
	"Snapshotter.Close":   func(s *classScene) error { return s.sn.Close() },
}

// layerCalls calls every function of package layer that returns an error.
var layerCalls = map[string]func(s *classScene) error{
	"Open": func(s *classScene) error {
		dir, err := rootdir.Open(s.root, s.db, nil)
		if err != nil {
			return nil // an error of package rootdir, which is not tested here
		}
		defer dir.Close()
		opened, err := layer.Open(dir, s.db, s.blobs, nil)
		if err == nil {
			err = opened.Close()
		}
		return err
	},
	"Recover": func(s *classScene) error { return second(layer.Recover(s.ctx, s.root)) },
	"Store.Claim": func(s *classScene) error {
		return second(s.layers.Claim(s.ctx, s.other, func(*metadata.Tx, metadata.Layer) error { return nil }))
	},
	"Store.Root":   func(s *classScene) error { return second(s.layers.Root(s.rec)) },
	"Store.Record": func(s *classScene) error { return second(s.layers.Record(s.rec.Key)) },
	"Store.DeleteReleased": func(s *classScene) error {
		return s.layers.DeleteReleased([]metadata.Layer{s.rec})
	},
	"Store.Rootfs": func(s *classScene) error { return second(s.layers.Rootfs(s.ctx, "other", manifest)) },
	"Store.Assemble": func(s *classScene) error {
		return second(s.layers.Assemble(s.ctx, holder, digest.FromString("another"), []metadata.Layer{s.rec}, nil))
	},
	"Store.Check": func(s *classScene) error { return s.layers.Check(s.ctx, func(metadata.Fault) {}) },
	"Store.CheckNode": func(s *classScene) error {
		return s.layers.CheckNode(s.ctx, metadata.LayerNode(s.rec.Key), func(metadata.Fault) {})
	},
	"Store.Mend":   func(s *classScene) error { return s.layers.Mend(s.ctx, s.rec.Key, nil) },
	"Store.Unpack": func(s *classScene) error { return second(s.layers.Unpack(s.ctx, holder, s.other)) },
	"Store.ClaimDecoded": func(s *classScene) error {
		decode := func(_ context.Context, mediaType string, blob io.ReadCloser) (string, io.ReadCloser, error) {
			return mediaType, blob, nil
		}
		hold := func(*metadata.Tx, metadata.Layer) error { return nil }
		return second(s.layers.ClaimDecoded(s.ctx, s.other, decode, hold))
	},
	"Store.CopyStack": func(s *classScene) error {
		return s.layers.CopyStack(s.ctx, filepath.Join(s.root, "layers", "missing", "fs"), nil, nil)
	},
	"Store.SyncForClones": func(s *classScene) error { return s.layers.SyncForClones(s.ctx, true) },
	"Store.Doubt":         func(s *classScene) error { return s.layers.Doubt(metadata.LayerNode(s.rec.Key)) },
	"Store.Sync":          func(s *classScene) error { return s.layers.Sync(s.ctx) },
	"Store.Plan": func(s *classScene) error {
		plan, err := s.layers.Plan(s.ctx, s.rec.Key, nil)
		if err == nil {
			plan.Close()
		}
		return err
	},
	"Store.Build": func(s *classScene) error { return second(s.layers.Build(s.ctx, s.plan)) },
	"Store.BuildRoot": func(s *classScene) error {
		return second(s.layers.BuildRoot(s.ctx, entry.Entry{Path: ".", Type: entry.Dir}))
	},
	"Store.Attach": func(s *classScene) error {
		return s.layers.Attach(holder, "fix-up", s.built, func(*metadata.Tx) error { return nil })
	},
	"Store.Intact":        func(s *classScene) error { return second(s.layers.Intact(s.ctx, s.rec.Key)) },
	"Store.Servable":      func(s *classScene) error { return second(s.layers.Servable(s.ctx, s.rec.Key)) },
	"Store.DropUnclaimed": func(s *classScene) error { return s.layers.DropUnclaimed(time.Now()) },
	"Store.Fits":          func(s *classScene) error { return s.layers.Fits([]layer.Pair{s.other}) },
}

// TestErrorsHaveAClass checks that every returned error has an errdefs class. It calls every function on a root that
// was deleted, on a root whose directories were replaced by files, with a closed database, and with a context that has
// ended.
func TestErrorsHaveAClass(t *testing.T) {
	requireRoot(t)
	errclasstest.Complete(t, ".", storeCalls, map[string]string{
		"ParseRequest": "returns the error of an option, which is its caller's",
	})
	errclasstest.Complete(t, "layer", layerCalls, map[string]string{
		"Store.Unrecorded": "runs in a transaction of its caller",
		"Store.Close":      "the snapshot store closes it",
	})
	for damage, do := range map[string]func(t *testing.T, s *classScene){
		"the root is gone": func(t *testing.T, s *classScene) { must(t, os.RemoveAll(s.root)) },
		"files instead of directories": func(t *testing.T, s *classScene) {
			for _, dir := range []string{"layers", "rootfs", "snapshots", "staging"} {
				dir = filepath.Join(s.root, dir)
				must(t, errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)))
			}
		},
		"the database is closed": func(t *testing.T, s *classScene) { must(t, s.db.Close()) },
		"the context has ended": func(t *testing.T, s *classScene) {
			var cancel context.CancelFunc
			s.ctx, cancel = context.WithCancel(s.ctx)
			cancel()
		},
	} {
		t.Run(damage, func(t *testing.T) {
			s := newClassScene(t)
			do(t, s)
			for kind, calls := range map[string]map[string]func(s *classScene) error{
				"layer": layerCalls, "snapshot": storeCalls,
			} {
				for name, call := range calls {
					if name != "Store.Close" {
						errclasstest.Check(t, kind+"."+name, call(s))
					}
				}
			}
			errclasstest.Check(t, "snapshot.Store.Close", storeCalls["Store.Close"](s))
		})
	}
}
