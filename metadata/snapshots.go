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
		return err // SnapshotHolder(key) must fit as well
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

// RenameSnapshot replaces the snapshot old by s under the key of s. Its holders, its children and what it holds move
// along. It returns errdefs.ErrAlreadyExists if the new key is in use.
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

// Children lists at most limit of the snapshots whose parent is key; the key "" lists the snapshots without a parent. A
// negative limit means no limit.
func (tx *Tx) Children(key string, limit int) []string {
	return tx.page(bucketChildren, join(key, ""), "", limit)
}

// unlinkSnapshot removes a snapshot from the index of its parent's children and releases what it holds.
func (tx *Tx) unlinkSnapshot(key string) error {
	if children := tx.Children(key, 1); len(children) > 0 {
		return fmt.Errorf("snapshot %s: remove: has child %s: %w", key, children[0], errdefs.ErrFailedPrecondition)
	}
	s, err := tx.Snapshot(key)
	if err != nil {
		return err
	}
	if err := tx.drop(bucketChildren, join(s.Parent, key)); err != nil {
		return err
	}
	return tx.ReleaseAll(SnapshotHolder(key))
}
