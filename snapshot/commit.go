package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// Commit turns the active snapshot key into the committed snapshot name: one record, and no directory moves. With a
// parent among opts a snapshot that was prepared without one gets it ("rebase").
func (n *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	sn, err := n.get(key)
	if err != nil {
		return err
	}
	key, name, base.Parent = sn.Key, n.holder.SnapshotKey(name), n.holder.SnapshotKey(base.Parent)
	usage, written, err := n.s.written(ctx, sn)
	if err != nil {
		return err
	}
	if err := n.s.valid(ctx, sn, base.Parent); err != nil {
		return fmt.Errorf("snapshot %s: commit: %w", key, err)
	}
	var committed metadata.Snapshot
	left := ""
	err = n.s.db.Batch(func(tx *metadata.Tx) error {
		if sn, err = n.held(tx, key); err != nil {
			return err
		}
		committed, left, err = n.committed(tx, sn, name, base, usage, written)
		if err != nil {
			return err
		}
		return tx.RenameSnapshot(key, committed)
	})
	if err != nil {
		return err
	}
	n.s.own(committed)
	if left != "" {
		err = n.s.disown(left)
	}
	if committed.Layer != "" && committed.Fixup == "" {
		n.s.work.Go("fix-up", func(ctx context.Context) error {
			_, err := n.s.stack(ctx, committed.Key)
			if errdefs.IsNotFound(err) {
				return nil // removed meanwhile
			}
			return err
		})
	}
	n.s.layers.SyncSoon()
	return err
}

// valid refuses, of class stream.ErrInvalidLayer, a snapshot whose layer is invalid above its parent, such as one with
// a hard link to a file that no layer has. containerd names the parent in Prepare or, when it unpacks layers at the
// same time, not before Commit. Only an ordered layer can be invalid.
func (s *Store) valid(ctx context.Context, sn metadata.Snapshot, parent string) error {
	if sn.Layer == "" {
		return nil
	}
	rec, err := s.layers.Record(sn.Layer)
	if err != nil || !rec.Ordered {
		return err
	}
	if parent != "" {
		sn.Parent = parent
	}
	p, err := s.planFor(ctx, sn)
	if err != nil {
		return err
	}
	p.Close()
	return nil
}

// committed is the record that a commit writes; left is the directory that it no longer needs.
func (n *Snapshotter) committed(tx *metadata.Tx, sn metadata.Snapshot, name string, base snapshots.Info, usage snapshots.Usage,
	written bool,
) (c metadata.Snapshot, left string, err error) {
	if sn.Kind != metadata.Active {
		return c, "", fmt.Errorf("snapshot %s: not active: %w", sn.Key, errdefs.ErrFailedPrecondition)
	}
	c = sn
	if base.Parent != "" && c.Parent != base.Parent {
		if c.Parent != "" {
			return c, "", fmt.Errorf("snapshot %s: has another parent: %w", sn.Key, errdefs.ErrInvalidArgument)
		}
		c.Parent = base.Parent
		if _, err := n.checkParent(tx, c.Parent); err != nil {
			return c, "", err
		}
		c.FullCopy = false // what was made on nothing is what it adds
	}
	c.Remapped = c.Remapped || remapsItself(sn.Key, name)
	c.Key, c.Kind, c.Labels = name, metadata.Committed, base.Labels
	c.Created = time.Now().UTC()
	c.Updated = c.Created
	c.Size, c.Inodes = usage.Size, usage.Inodes
	if c.Layer == "" {
		return c, "", nil
	}
	rec, err := tx.Layer(c.Layer)
	if err != nil {
		return c, "", err
	}
	if !rec.NeedsFixup {
		c.Fixup = metadata.NoFixup
	}
	if written {
		c.Size, c.Inodes = usage.Size+rec.Size, usage.Inodes+rec.Inodes
		return c, "", nil
	}
	c.Size, c.Inodes = rec.Size, rec.Inodes
	left, c.Dir = c.Dir, ""
	return c, left, nil
}

// written looks at what an active snapshot's own directory holds: everything, unless a layer was applied; then, as a rule,
// nothing.
func (s *Store) written(ctx context.Context, sn metadata.Snapshot) (u snapshots.Usage, written bool, err error) {
	if sn.Kind != metadata.Active || sn.Dir == "" {
		return u, false, nil
	}
	if sn.Layer != "" {
		if pristine, err := s.pristine(sn.Dir); err != nil || pristine {
			return u, false, err
		}
	}
	u, err = s.du(ctx, sn)
	return u, true, err
}

// disown deletes a snapshot's directory, whose record no longer names it.
func (s *Store) disown(dir string) error {
	s.mu.Lock()
	delete(s.dirs, dir)
	s.mu.Unlock()
	return s.dir.Trash(s.path("snapshots", dir))
}

// Remove ends the holder's hold of a snapshot; errdefs.ErrFailedPrecondition while it has children. It waits for no disk:
// containerd's collector removes by the hundred under a lock that every Prepare needs. What the snapshot wrote, and what only it stood
// on, is deleted in the background, after its record is away for good.
func (n *Snapshotter) Remove(_ context.Context, key string) error {
	key = n.holder.SnapshotKey(key)
	var sn metadata.Snapshot
	var layers []metadata.Layer
	seen := false
	removed, err := n.s.db.UpdateDeferred(func(tx *metadata.Tx) (err error) {
		if seen { // it runs again, for the sake of others, while what it found is in use
			return tx.Release(n.holder, metadata.SnapshotNode(key))
		}
		if sn, err = n.held(tx, key); err != nil {
			return err
		}
		for _, l := range tx.Held(metadata.SnapshotHolder(key), metadata.KindLayer, "", -1) {
			rec, err := tx.Layer(l)
			if err != nil {
				return err
			}
			layers = append(layers, rec)
		}
		seen = true
		return tx.Release(n.holder, metadata.SnapshotNode(key))
	})
	if err != nil {
		return err
	}
	n.s.mu.Lock()
	delete(n.s.dirs, sn.Dir)
	n.s.mu.Unlock()
	n.s.work.Go("snapshot "+key+": remove", func(context.Context) error {
		if err := removed(); err != nil {
			n.s.own(sn) // it is still held, with its bytes
			return err
		}
		if sn.Dir != "" {
			err = n.s.dir.Trash(n.s.path("snapshots", sn.Dir))
		}
		return errors.Join(err, n.s.layers.DeleteReleased(layers))
	})
	return nil
}
