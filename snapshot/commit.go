package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// Commit turns the active snapshot key into the committed snapshot name. It writes one record, in the database and
// beside the snapshot's directory, and moves no directory. A snapshot that was prepared without a parent gets the
// parent in opts, if there is one ("rebase").
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
	if written && !n.s.opts.UnsyncedCommits {
		if err := n.s.syncTree(ctx, n.s.path("snapshots", sn.Dir, "fs")); err != nil {
			return fmt.Errorf("snapshot %s: commit: %w", key, err)
		}
	}
	var committed metadata.Snapshot
	err = n.s.db.Batch(func(tx *metadata.Tx) error {
		if sn, err = n.held(tx, key); err != nil {
			return err
		}
		committed, err = n.committed(tx, sn, name, base, usage, written)
		if err != nil {
			return err
		}
		return tx.RenameSnapshot(key, committed)
	})
	if err != nil {
		return err
	}
	n.s.setOwner(committed)
	n.s.records.Note(ctx, committed.Key, record.Now)
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
	return nil
}

// valid returns stream.ErrInvalidLayer if the layer of a snapshot is invalid above its parent, for example because of a
// hard link to a file that no layer has. containerd names the parent in Prepare or, if it unpacks layers at the same
// time, not before Commit. Only an ordered layer can be invalid.
func (s *Store) valid(ctx context.Context, sn metadata.Snapshot, parent string) error {
	if sn.Layer == "" {
		return nil
	}
	defer s.layers.Readers().Begin()()
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

// committed returns the record that a commit writes.
func (n *Snapshotter) committed(tx *metadata.Tx, sn metadata.Snapshot, name string, base snapshots.Info,
	usage snapshots.Usage,
	written bool,
) (c metadata.Snapshot, err error) {
	if sn.Kind != metadata.Active {
		return c, fmt.Errorf("snapshot %s: not active: %w", sn.Key, errdefs.ErrFailedPrecondition)
	}
	c = sn
	if base.Parent != "" && c.Parent != base.Parent {
		if c.Parent != "" {
			return c, fmt.Errorf("snapshot %s: has another parent: %w", sn.Key, errdefs.ErrInvalidArgument)
		}
		c.Parent = base.Parent
		switch _, err := n.checkParent(tx, c.Parent); {
		case errdefs.IsInvalidArgument(err): // in Commit, containerd has another class for this than in Prepare
			return c, fmt.Errorf("snapshot %s: parent is not committed: %w", c.Parent, errdefs.ErrFailedPrecondition)
		case err != nil:
			return c, err
		}
		c.FullCopy = false // a directory that was made without a parent has only what it adds to one
	}
	c.Remapped = c.Remapped || remapsItself(sn.Key, name)
	c.Key, c.Kind, c.Labels = name, metadata.Committed, base.Labels
	c.Created = time.Now().UTC()
	c.Updated = c.Created
	c.Size, c.Inodes = usage.Size, usage.Inodes
	if c.Layer == "" {
		return c, nil
	}
	rec, err := tx.Layer(c.Layer)
	if err != nil {
		return c, err
	}
	if !rec.NeedsFixup {
		c.Fixup = metadata.NoFixup
	}
	if written {
		c.Size, c.Inodes = usage.Size+rec.Size, usage.Inodes+rec.Inodes
		return c, nil
	}
	c.Size, c.Inodes = rec.Size, rec.Inodes
	if c.Dir != "" { // nothing is in it but the record
		c.Dir, c.RecordDir = "", c.Dir
	}
	return c, nil
}

// written returns the disk usage of what was written to an active snapshot's own directory, and reports whether that is
// anything. If a layer was applied, the directory is usually empty.
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

// Remove ends the holder's hold of a snapshot. It returns errdefs.ErrFailedPrecondition if the snapshot
// has children. It does not wait for the disk, because containerd's collector removes hundreds of
// snapshots under a lock that every Prepare needs. Directories and layers that no other snapshot needs
// are deleted in the background, after the deletion of the record is on the disk. Only for a snapshot that is
// not durable yet, Remove waits as well: a Commit may have made it, and until that is durable, readers see another key.
func (n *Snapshotter) Remove(_ context.Context, key string) error {
	durable, _ := n.get(key)
	key = n.holder.SnapshotKey(key)
	var sn metadata.Snapshot
	var layers []metadata.Layer
	seen := false
	removed, err := n.s.db.UpdateDeferred(func(tx *metadata.Tx) (err error) {
		if seen { // the transaction runs again, because another one failed, while sn and layers are in use
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
			n.s.setOwner(sn) // the snapshot is still held
			return err
		}
		if sn.Entry() != "" {
			err = n.s.dir.Trash(n.s.path("snapshots", sn.Entry()))
		}
		return errors.Join(err, n.s.layers.DeleteReleased(layers))
	})
	if !durable.Created.Equal(sn.Created) {
		return removed()
	}
	return nil
}
