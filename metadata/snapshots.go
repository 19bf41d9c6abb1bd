package metadata

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Snapshot returns the record of a snapshot, or errdefs.ErrNotFound.
func (tx *Tx) Snapshot(key string) (s Snapshot, err error) {
	err = tx.get(bucketSnapshots, "snapshot", key, &s)
	return s, err
}

// PutSnapshot writes the record of a snapshot. Its parent must exist (errdefs.ErrNotFound).
func (tx *Tx) PutSnapshot(s Snapshot) error {
	if err := checkName("snapshot", s.Key+string(SnapshotHolder(""))); err != nil {
		return err // also when only its holder would be too long
	}
	if old, err := tx.Snapshot(s.Key); err == nil && old.Parent != s.Parent {
		if err := tx.bolt.Bucket(bucketChildren).Delete(join(old.Parent, s.Key)); err != nil {
			return err
		}
	}
	if s.Parent != "" && !tx.has(SnapshotNode(s.Parent)) {
		return fmt.Errorf("snapshot %s: parent %s: %w", s.Key, s.Parent, errdefs.ErrNotFound)
	}
	if err := tx.bolt.Bucket(bucketChildren).Put(join(s.Parent, s.Key), nil); err != nil {
		return err
	}
	return tx.putNode(SnapshotNode(s.Key), s)
}

// RenameSnapshot gives the snapshot old the key of s, with its holders, its children and what it holds, and writes s.
// errdefs.ErrAlreadyExists when the new key is taken.
func (tx *Tx) RenameSnapshot(old string, s Snapshot) error {
	if tx.has(SnapshotNode(s.Key)) {
		return fmt.Errorf("snapshot %s: %w", s.Key, errdefs.ErrAlreadyExists)
	}
	if err := tx.PutSnapshot(s); err != nil {
		return err
	}
	for _, h := range tx.Holders(SnapshotNode(old)) {
		if err := tx.Hold(h, SnapshotNode(s.Key)); err != nil {
			return err
		}
	}
	for _, l := range tx.Held(SnapshotHolder(old), KindLayer, "", -1) {
		if err := tx.Hold(SnapshotHolder(s.Key), LayerNode(l)); err != nil {
			return err
		}
	}
	for _, key := range tx.Children(old, -1) {
		child, err := tx.Snapshot(key)
		if err != nil {
			return err
		}
		child.Parent = s.Key
		if err := tx.PutSnapshot(child); err != nil {
			return err
		}
	}
	for _, h := range tx.Holders(SnapshotNode(old)) {
		if err := tx.Release(h, SnapshotNode(old)); err != nil {
			return err
		}
	}
	return nil
}

// Children lists at most limit (all when negative) of the snapshots that have key as their parent; those without a
// parent for the key "".
func (tx *Tx) Children(key string, limit int) []string {
	return pageOf(tx.bolt.Bucket(bucketChildren), join(key, ""), "", limit)
}

// unlinkSnapshot takes a snapshot out of its parent's children and releases what it stands on.
func (tx *Tx) unlinkSnapshot(key string) error {
	if children := tx.Children(key, 1); len(children) > 0 {
		return fmt.Errorf("snapshot %s: remove: has child %s: %w", key, children[0], errdefs.ErrFailedPrecondition)
	}
	s, err := tx.Snapshot(key)
	if err != nil {
		return err
	}
	if err := tx.bolt.Bucket(bucketChildren).Delete(join(s.Parent, key)); err != nil {
		return err
	}
	return tx.ReleaseAll(SnapshotHolder(key))
}
