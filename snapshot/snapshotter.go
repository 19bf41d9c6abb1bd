package snapshot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// walkPage is how many snapshots Walk reads in one transaction.
const walkPage = 100

// Snapshotter is a Store as one holder sees it: containerd's snapshots.Snapshotter.
type Snapshotter struct {
	s      *Store
	holder metadata.Holder
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// For returns the snapshots that holder holds.
func (s *Store) For(holder metadata.Holder) *Snapshotter { return &Snapshotter{s, holder} }

func (s *Store) snapshot(key string) (sn metadata.Snapshot, err error) {
	err = s.db.ViewPending(func(tx *metadata.Tx) error {
		sn, err = tx.Snapshot(key)
		return err
	})
	return sn, err
}

// held returns the record of a snapshot; errdefs.ErrNotFound if the holder does not hold it. key is the recorded key.
func (n *Snapshotter) held(tx *metadata.Tx, key string) (metadata.Snapshot, error) {
	if !tx.Holds(n.holder, metadata.SnapshotNode(key)) {
		return metadata.Snapshot{}, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
	}
	return tx.Snapshot(key)
}

// get returns the record of the snapshot that the holder calls key; errdefs.ErrNotFound if it does not hold it.
func (n *Snapshotter) get(key string) (sn metadata.Snapshot, err error) {
	key = n.holder.SnapshotKey(key)
	err = n.s.db.ViewPending(func(tx *metadata.Tx) error {
		sn, err = n.held(tx, key)
		return err
	})
	return sn, err
}

// Stat returns the info of a snapshot; errdefs.ErrNotFound if the holder does not hold it.
func (n *Snapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	sn, err := n.get(key)
	return n.info(sn), err
}

// info returns the info of a snapshot, with the names that the holder uses for it and its parent.
func (n *Snapshotter) info(sn metadata.Snapshot) snapshots.Info {
	kinds := map[metadata.SnapshotKind]snapshots.Kind{
		metadata.Active: snapshots.KindActive, metadata.View: snapshots.KindView,
		metadata.Committed: snapshots.KindCommitted,
	}
	return snapshots.Info{
		Kind: kinds[sn.Kind], Name: n.holder.SnapshotName(sn.Key), Parent: n.holder.SnapshotName(sn.Parent),
		Labels: sn.Labels, Created: sn.Created, Updated: sn.Updated,
	}
}

// Update changes the labels in fieldpaths, or all labels if it is empty. It returns errdefs.ErrInvalidArgument for any
// other field.
func (n *Snapshotter) Update(ctx context.Context, in snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	var sn metadata.Snapshot
	err := n.s.db.Batch(func(tx *metadata.Tx) (err error) {
		if sn, err = n.held(tx, n.holder.SnapshotKey(in.Name)); err != nil {
			return err
		}
		if sn.Labels, err = updatedLabels(sn.Labels, in.Labels, fieldpaths); err != nil {
			return fmt.Errorf("snapshot %s: %w", in.Name, err)
		}
		sn.Updated = time.Now().UTC()
		return tx.PutSnapshot(sn)
	})
	if err == nil {
		n.s.records.Note(ctx, sn.Key, record.Now)
	}
	return n.info(sn), err
}

func updatedLabels(old, new map[string]string, fieldpaths []string) (map[string]string, error) {
	if len(fieldpaths) == 0 {
		return new, nil
	}
	labels := map[string]string{}
	for k, v := range old {
		labels[k] = v
	}
	for _, p := range fieldpaths {
		key, ok := strings.CutPrefix(p, "labels.")
		switch {
		case p == "labels":
			labels = new
		case !ok:
			return nil, fmt.Errorf("field %q can't be changed: %w", p, errdefs.ErrInvalidArgument)
		case new[key] == "":
			delete(labels, key)
		default:
			labels[key] = new[key]
		}
	}
	return labels, nil
}

// Usage returns the disk usage of a snapshot without its parents. For a committed snapshot it is read from the record.
// Blocks that a copy shares with its source (reflinks) count in full.
func (n *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	sn, err := n.get(key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if sn.Kind == metadata.Active && sn.Layer == "" || sn.Kind == metadata.View && sn.FullCopy {
		return n.s.du(ctx, sn)
	}
	return snapshots.Usage{Size: sn.Size, Inodes: sn.Inodes}, nil
}

func (s *Store) du(ctx context.Context, sn metadata.Snapshot) (snapshots.Usage, error) {
	u, err := nodes.Usage(ctx, s.path("snapshots", sn.Dir, "fs"))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("snapshot %s: usage: %w", sn.Key, err)
	}
	return u, nil
}

// Mounts returns the mounts of an active snapshot or a view; errdefs.ErrFailedPrecondition for a committed snapshot.
func (n *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	sn, err := n.get(key)
	if err != nil {
		return nil, err
	}
	if sn.Kind == metadata.Committed {
		return nil, fmt.Errorf("snapshot %s: committed, has no mounts: %w", key, errdefs.ErrFailedPrecondition)
	}
	var st *stack
	if !sn.FullCopy {
		if st, err = n.s.stack(ctx, sn.Parent); err != nil {
			return nil, err
		}
	}
	r := recordedRequest(sn)
	ids, err := n.s.idMaps(r, sn.Remapped)
	if err != nil {
		return nil, err
	}
	return n.s.mounts(ctx, sn, r, st, ids)
}

// Walk calls fn for each of the holder's snapshots that matches one of containerd's filters fs, for all
// of them if there are no filters. fn may call methods of the Snapshotter. Up to walkPage snapshots are those of one
// moment.
func (n *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	for after := ""; ; {
		var page []metadata.Snapshot
		err := n.s.db.ViewPending(func(tx *metadata.Tx) error {
			for _, key := range tx.Held(n.holder, metadata.KindSnapshot, after, walkPage) {
				sn, err := tx.Snapshot(key)
				if err != nil {
					return err
				}
				page = append(page, sn)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, sn := range page {
			if i := n.info(sn); filter.Match(adapt(i)) {
				if err := fn(ctx, i); err != nil {
					return err
				}
			}
		}
		if len(page) < walkPage {
			return nil
		}
		after = page[len(page)-1].Key
	}
}

// adapt gives containerd's filters the fields that its own snapshotters have: kind, name, parent, labels.
func adapt(i snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(fieldpath []string) (string, bool) {
		if len(fieldpath) == 0 {
			return "", false
		}
		switch fieldpath[0] {
		case "kind":
			return strings.ToLower(i.Kind.String()), true
		case "name":
			return i.Name, true
		case "parent":
			return i.Parent, true
		case "labels":
			v, ok := i.Labels[strings.Join(fieldpath[1:], ".")]
			return v, ok
		}
		return "", false
	})
}

// Cleanup sweeps. containerd calls it after a garbage collection. It logs what the kernel protects from deletion.
func (n *Snapshotter) Cleanup(ctx context.Context) error {
	_, err := n.s.Sweep(ctx)
	if left, rest := leftover.Split(err); left != nil && left.Protected {
		log.G(ctx).WithError(left).Warn("cleanup")
		return rest
	}
	return err
}

// Close does nothing. The caller of Open closes the Store.
func (n *Snapshotter) Close() error { return nil }
