package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// Prepare makes an active snapshot above parent and returns its mounts. With Options.SkipKnownBlobs, it handles the
// extraction of a known layer whose blob is not here: it returns a read-only mount, which containerd commits without
// downloading or applying anything, or it commits the target itself and returns errdefs.ErrAlreadyExists. A label names
// the target of an extraction.
func (n *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	key, parent = n.holder.SnapshotKey(key), n.holder.SnapshotKey(parent)
	r, err := ParseRequest(key, parent, opts...)
	if err != nil {
		return nil, err
	}
	if r.Target != "" && n.s.opts.SkipKnownBlobs {
		m, done, err := n.prepareKnown(ctx, r)
		if err != nil || done {
			return m, err
		}
	}
	return n.create(ctx, metadata.Active, r)
}

// View makes a read-only snapshot of parent and returns its mounts.
func (n *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	key, parent = n.holder.SnapshotKey(key), n.holder.SnapshotKey(parent)
	r, err := ParseRequest(key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return n.create(ctx, metadata.View, r)
}

// create makes a snapshot's directory, then its record, and returns its mounts.
func (n *Snapshotter) create(ctx context.Context, kind metadata.SnapshotKind, r Request) ([]mount.Mount, error) {
	n.s.dir.Throttle(ctx)
	defer n.s.layers.Readers().Begin()()
	swaps := n.s.layers.Readers().Swaps()
	parent, err := n.checkNew(r.Key, r.Parent)
	if err != nil {
		return nil, err
	}
	sn := metadata.Snapshot{
		Key: r.Key, Kind: kind, Parent: r.Parent, Labels: r.Labels, Remapped: parent.Remapped,
	}
	st, err := n.s.stack(ctx, sn.Parent)
	if err != nil {
		return nil, err
	}
	ids, err := n.s.idMaps(r, sn.Remapped)
	if err != nil {
		return nil, err
	}
	sn.FullCopy = n.s.needsCopy(kind, r, st, !ids.empty())
	sn.Created = time.Now().UTC()
	sn.Updated = sn.Created
	staged, err := n.stageSnapshot(ctx, sn, st, ids)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", sn.Key, err)
	}
	// While the directory was made for the parent, another snapshot may have got the parent's name.
	replaced := false
	sn, err = n.put(sn, staged, func(tx *metadata.Tx) bool {
		p, err := tx.Snapshot(r.Parent)
		replaced = r.Parent != "" && err == nil && !p.Created.Equal(parent.Created)
		return !replaced
	})
	if err != nil {
		return nil, err
	}
	if replaced {
		return n.create(ctx, kind, r)
	}
	if n.s.layers.Readers().Swaps() != swaps { // nothing keeps for sn the old directory of a layer that was mended
		if st, err = n.s.stack(ctx, sn.Parent); err != nil {
			return nil, err
		}
	}
	if sn, err = n.s.ensureViewRoot(ctx, sn, st, !ids.empty()); err != nil {
		return nil, err
	}
	return n.s.mounts(ctx, sn, r, st, ids)
}

// checkNew returns the record of the parent. It fails for the same reasons as the transaction of put, before any
// directory is made.
func (n *Snapshotter) checkNew(key, parent string) (p metadata.Snapshot, err error) {
	err = n.s.db.ViewPending(func(tx *metadata.Tx) (err error) {
		if _, err := tx.Snapshot(key); err == nil {
			return fmt.Errorf("snapshot %s: %w", key, errdefs.ErrAlreadyExists)
		}
		p, err = n.checkParent(tx, parent)
		return err
	})
	return p, err
}

// checkParent returns the record of a parent that the holder may use, an empty record for "".
func (n *Snapshotter) checkParent(tx *metadata.Tx, parent string) (p metadata.Snapshot, err error) {
	if parent == "" {
		return p, nil
	}
	if p, err = n.held(tx, parent); err != nil {
		return p, fmt.Errorf("parent: %w", err)
	}
	if p.Kind != metadata.Committed {
		return p, fmt.Errorf("snapshot %s: parent is not committed: %w", parent, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// staged is the directory of a snapshot that has no position yet.
type staged struct {
	path    string
	content bool // it has the content of the snapshot, and not only its durable record
}

// stageSnapshot makes the directory of a new snapshot.
func (n *Snapshotter) stageSnapshot(ctx context.Context, sn metadata.Snapshot, st *stack, ids idMaps) (staged, error) {
	switch {
	case sn.FullCopy:
		return n.stageCopy(ctx, sn, st)
	case sn.Kind == metadata.View && len(st.dirs) > 0:
		return n.stageRecord(sn)
	}
	root := st.root
	if len(st.dirs) > 0 { // the mount remaps the lower directories only
		root = ids.root(root)
	}
	return n.stage(sn, true, func(dir string) error { return makeUpper(dir, &root) })
}

// stageRecord makes the directory of a snapshot that has no content of its own.
func (n *Snapshotter) stageRecord(sn metadata.Snapshot) (staged, error) {
	return n.stage(sn, false, func(string) error { return nil })
}

// stage makes the directory of a new snapshot, with what fill makes in it.
func (n *Snapshotter) stage(sn metadata.Snapshot, content bool, fill func(dir string) error) (staged, error) {
	r := record.Record{Snapshot: sn, Content: content, Holders: []metadata.Holder{n.holder}}
	path, err := n.s.records.Stage(r, fill)
	return staged{path, content}, err
}

// makeUpper makes fs and work in dir. fs gets the attributes root, because it is the root directory that a container
// sees.
func makeUpper(dir string, root *entry.Entry) error {
	fs := filepath.Join(dir, "fs")
	if err := errors.Join(os.Mkdir(fs, 0o755), os.Mkdir(filepath.Join(dir, "work"), 0o711)); err != nil {
		return err
	}
	return nodes.SetAttrs(fs, root)
}

// put gives the directory of a new snapshot its position and records the snapshot. needed runs first in the
// transaction and reports whether the snapshot is still needed; nil: it is.
func (n *Snapshotter) put(sn metadata.Snapshot, st staged, needed func(*metadata.Tx) bool) (metadata.Snapshot, error) {
	err := n.s.dir.Place(rootdir.Entry{Kind: metadata.KindSnapshot, Staged: st.path},
		func(tx *metadata.Tx, dir string) (bool, error) {
			if needed != nil && !needed(tx) {
				return false, nil
			}
			if _, err := tx.Snapshot(sn.Key); err == nil {
				return false, fmt.Errorf("snapshot %s: %w", sn.Key, errdefs.ErrAlreadyExists)
			}
			if _, err := n.checkParent(tx, sn.Parent); err != nil {
				return false, err
			}
			sn.Dir, sn.RecordDir = "", dir
			if st.content {
				sn.Dir, sn.RecordDir = dir, ""
			}
			if sn.Layer != "" {
				if err := tx.Hold(metadata.SnapshotHolder(sn.Key), metadata.LayerNode(sn.Layer)); err != nil {
					return false, err
				}
			}
			if err := tx.PutSnapshot(sn); err != nil {
				return false, err
			}
			return true, tx.Hold(n.holder, metadata.SnapshotNode(sn.Key))
		})
	if err != nil {
		return sn, err
	}
	n.s.setOwner(sn)
	return sn, nil
}

// setOwner keeps in memory which snapshot a directory belongs to.
func (s *Store) setOwner(sn metadata.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirs, sn.RecordDir)
	if sn.Dir != "" {
		s.dirs[sn.Dir] = sn.Key
	}
}

// ensureViewRoot makes the directory that a view has on top, if it needs one, and returns the record afterwards.
func (s *Store) ensureViewRoot(ctx context.Context, sn metadata.Snapshot, st *stack, remap bool) (metadata.Snapshot,
	error) {
	if sn.Kind != metadata.View || sn.Dir != "" {
		return sn, nil
	}
	key := st.viewRoot(remap)
	if key == "" {
		return sn, nil
	}
	defer s.locks.Lock("root/" + key)()
	for {
		var built *layer.Built
		if _, err := s.layers.Record(key); err != nil {
			if built, err = s.layers.BuildRoot(ctx, st.root); err != nil {
				return sn, fmt.Errorf("snapshot %s: root directory: %w", sn.Key, err)
			}
		}
		now, err := s.attachFixup(ctx, sn.Key, key, built, func(sn *metadata.Snapshot) { sn.ViewRoot = key })
		if !errors.Is(err, layer.ErrReleased) {
			return now, err
		}
	}
}
