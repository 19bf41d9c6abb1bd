package snapshot

import (
	"fmt"

	"github.com/tank-snapshotter/tank/metadata"
)

// HandOver gives all that the records say the holder from holds to the holder to, in the transaction in which also
// runs. Both are holders of containerds.
func (s *Store) HandOver(from, to metadata.Holder, also func(*metadata.Tx) error) error {
	var moved []metadata.Rekeyed
	owners := map[string]string{} // directory -> new key
	err := s.db.Update(func(tx *metadata.Tx) (err error) {
		if moved, err = tx.HandOver(from, to); err != nil {
			return err
		}
		for _, m := range moved {
			sn, err := tx.Snapshot(m.New)
			if err != nil {
				return err
			}
			if sn.Dir != "" {
				owners[sn.Dir] = sn.Key
			}
		}
		return also(tx)
	})
	if err != nil {
		return fmt.Errorf("holder %s: hand over to %s: %w", from, to, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for dir, key := range owners {
		s.dirs[dir] = key
	}
	return nil
}
