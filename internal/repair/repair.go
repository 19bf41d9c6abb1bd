// Package repair finds what is wrong with a root, says what would mend it, and mends it.
//
// It owns nothing on disk: the stores change what is theirs.
//
// Its invariant: nothing that a container or another call may be using is changed in place. A mended layer or root
// file system is a new directory, a mended blob replaces the file of the old one at once, and each of these steps is
// complete or did not happen. So a repair may be killed at any time and run again.
//
// The surprising rule: a repair trusts no earlier check. Each thing is compared again before it is mended, because it
// may have been removed or mended since, and once more afterwards, because only that shows what was achieved.
package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/copies"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Root is what a repair needs of an open root. All fields but Registries are set.
type Root struct {
	DB        *metadata.DB
	Content   *content.Store
	Snapshots *snapshot.Store
	// KeepLayers is true in a daemon's root, in which layers stay beside a root file system.
	KeepLayers bool
	// CheckImage reports an image whose documents a pull would refuse.
	CheckImage func(ctx context.Context, i metadata.Image, report func(metadata.Fault)) error
	// Held calls fn while no pull of a reference runs, with the holder of such a pull. What fn has it hold is released
	// afterwards, unless a pull of the reference was unfinished before.
	Held func(ctx context.Context, ref string, fn func(metadata.Holder) error) error
	// Copies are the durable copies of records.
	Copies *copies.Copies
	// Sweep deletes bytes without a record.
	Sweep func(ctx context.Context) error
	// Registries downloads blobs. nil: a repair uses only what is here.
	Registries *resolver.Resolver
	// Progress receives the progress of downloads. nil: nobody is interested.
	Progress func(resolver.Event)
	// Log receives a line about each step.
	Log func(format string, args ...any)
}

// Check reports everything that is wrong. Its own error means that the check is not complete.
func Check(ctx context.Context, r *Root, report func(metadata.Fault)) error {
	return errors.Join(r.DB.Check(report), r.Copies.Check(report), r.Content.Check(ctx, report),
		r.checkImages(ctx, report), r.Snapshots.Check(ctx, report))
}

func (r *Root) checkImages(ctx context.Context, report func(metadata.Fault)) error {
	images, err := r.images()
	for _, i := range images {
		err = errors.Join(err, r.CheckImage(ctx, i, report))
	}
	return err
}

func (r *Root) images() (images []metadata.Image, err error) {
	err = r.DB.View(func(tx *metadata.Tx) error {
		images, err = tx.Images("", -1)
		return err
	})
	return images, err
}

// Nodes lists the records of everything that can be compared with a digest or a seal: blobs, layers, root file systems.
func (r *Root) Nodes() (nodes []metadata.Node, err error) {
	err = r.DB.View(func(tx *metadata.Tx) error {
		for _, k := range []metadata.Kind{metadata.KindBlob, metadata.KindLayer, metadata.KindRootfs} {
			for _, key := range tx.Keys(k, "", -1) {
				if k == metadata.KindLayer && layer.IsReplaced(key) {
					continue
				}
				nodes = append(nodes, metadata.Node{Kind: k, Key: key})
			}
		}
		return nil
	})
	return nodes, err
}

// Result is what a repair found, one fault for each thing that was damaged.
type Result struct {
	Mended  []metadata.Fault
	Remains []Remaining
}

// Remaining is a fault that was not mended.
type Remaining struct {
	metadata.Fault
	Reason error // why it was not mended; nil if there is no way to mend it
}

// damaged is one damaged thing.
type damaged struct {
	fault  metadata.Fault // the first one
	count  int            // of its faults
	reason error
}

// order is the order in which things are mended: each needs only what comes before it.
var order = []string{"metadata", "blob", "layer", "fix-up", "rootfs", "image", "snapshot"}

func (d *damaged) rank() int {
	what, name := d.fault.Subject()
	if what == "layer" && layer.IsFixup(name) {
		what = "fix-up"
	}
	return slices.Index(order, what)
}

// Run checks the root, mends what it can, and sweeps. It returns an error if the check was not complete or ctx ended.
func Run(ctx context.Context, r *Root) (Result, error) {
	var res Result
	r.Log("checking everything")
	found, err := r.find(ctx)
	if err != nil {
		return res, err
	}
	for _, d := range found {
		d.reason = r.mend(ctx, d)
		if err := ctx.Err(); err != nil {
			return res, err
		}
		still, err := r.faultsOf(ctx, d.fault)
		if err != nil {
			return res, err
		}
		what, name := d.fault.Subject()
		if len(still) == 0 {
			r.Log("mended %s %s", what, name)
			res.Mended = append(res.Mended, d.fault)
			continue
		}
		r.Log("not mended: %s %s", what, name)
		for _, f := range still {
			res.Remains = append(res.Remains, Remaining{f, d.reason})
		}
	}
	if err := r.Snapshots.Layers().Sync(ctx); err != nil {
		return res, err
	}
	return res, r.Sweep(ctx)
}

// find checks the root and returns what is damaged, in the order in which it is to be mended.
func (r *Root) find(ctx context.Context) ([]*damaged, error) {
	type subject struct{ what, name string }
	by := map[subject]*damaged{}
	var found []*damaged
	err := Check(ctx, r, func(f metadata.Fault) {
		what, name := f.Subject()
		d := by[subject{what, name}]
		if d == nil {
			d = &damaged{fault: f}
			by[subject{what, name}] = d
			found = append(found, d)
		}
		d.count++
	})
	slices.SortStableFunc(found, func(a, b *damaged) int { return a.rank() - b.rank() })
	return found, err
}

// faultsOf checks again the one thing that a fault concerns.
func (r *Root) faultsOf(ctx context.Context, f metadata.Fault) (faults []metadata.Fault, err error) {
	report := func(f metadata.Fault) { faults = append(faults, f) }
	switch {
	case f.Node.Kind == metadata.KindBlob:
		err = r.Content.CheckBlob(ctx, digest.Digest(f.Node.Key), report)
	case f.Node.Kind == metadata.KindSnapshot:
		err = r.Snapshots.CheckSnapshot(f.Node.Key, report)
	case f.Node != metadata.Node{}:
		err = r.Snapshots.Layers().CheckNode(ctx, f.Node, report)
	case f.Image != "":
		var i metadata.Image
		err = r.DB.View(func(tx *metadata.Tx) error { i, err = tx.Image(f.Image); return err })
		if errdefs.IsNotFound(err) {
			return nil, nil // removed meanwhile
		}
		if err == nil {
			err = r.CheckImage(ctx, i, report)
		}
	case f.Mend == metadata.MendRecords:
		err = r.DB.Check(report)
	default:
		err = r.Copies.Check(report)
	}
	return faults, err
}

// mend mends one thing, or returns why it can't.
func (r *Root) mend(ctx context.Context, d *damaged) error {
	switch d.fault.Node.Kind {
	case metadata.KindBlob:
		return r.mendBlob(ctx, digest.Digest(d.fault.Node.Key))
	case metadata.KindLayer:
		return r.mendLayer(ctx, d.fault.Node.Key)
	case metadata.KindRootfs:
		return r.mendRootfs(ctx, digest.Digest(d.fault.Node.Key))
	case metadata.KindSnapshot:
		if d.fault.Mend == metadata.MendRecord {
			snapshot.MendRecord(ctx, r.Snapshots, d.fault.Node.Key)
		}
		return nil // only the container that wrote it could write it again
	}
	if d.fault.Image != "" {
		return fmt.Errorf("the registry has the same bytes under this digest: %w", errdefs.ErrFailedPrecondition)
	}
	if d.fault.Mend == metadata.MendRecord {
		return errors.Join(r.Copies.UpdateImages(), r.Copies.UpdateBindings())
	}
	return fmt.Errorf("the database is in use: %w", errdefs.ErrFailedPrecondition)
}
