package snapshot

import (
	"context"
	"fmt"
	"slices"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// HandOver gives everything that the holder from holds in the database to the holder to, and calls also in the same
// transaction. Both are holders for databases of containerd.
func (s *Store) HandOver(from, to metadata.Holder, also func(*metadata.Tx) error) error {
	err := s.rekey(func(tx *metadata.Tx) ([]metadata.Rekeyed, error) {
		moved, err := metadata.HandOver(tx, from, to)
		if err != nil {
			return nil, err
		}
		return moved, also(tx)
	})
	if err != nil {
		return fmt.Errorf("holder %s: hand over to %s: %w", from, to, err)
	}
	return nil
}

// SetAside gives other keys to the snapshots of h in a namespace that have this sequence number or a larger one.
// containerd's database has lost these snapshots, and containerd will use their numbers again.
func (s *Store) SetAside(h metadata.Holder, namespace string, sequence uint64) error {
	err := s.rekey(func(tx *metadata.Tx) ([]metadata.Rekeyed, error) {
		return metadata.SetAside(tx, h, namespace, sequence)
	})
	if err != nil {
		return fmt.Errorf("holder %s: set aside %s/%d: %w", h, namespace, sequence, err)
	}
	return nil
}

// rekey calls change, which gives snapshots other keys, in a transaction, and updates the owners of directories.
func (s *Store) rekey(change func(*metadata.Tx) ([]metadata.Rekeyed, error)) error {
	owners := map[string]string{} // directory -> new key
	var changed []string          // snapshots that have another key, or another key of their parent
	err := s.db.Update(func(tx *metadata.Tx) error {
		moved, err := change(tx)
		if err != nil {
			return err
		}
		for _, m := range moved {
			changed = append(append(changed, m.New), tx.Children(m.New, -1)...)
			sn, err := tx.Snapshot(m.New)
			if err != nil {
				return err
			}
			if sn.Dir != "" {
				owners[sn.Dir] = sn.Key
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.work.Go("durable records of snapshots", func(ctx context.Context) error {
		slices.Sort(changed)
		for _, key := range slices.Compact(changed) {
			s.records.Note(ctx, key, record.Now)
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for dir, key := range owners {
		s.dirs[dir] = key
	}
	return nil
}
