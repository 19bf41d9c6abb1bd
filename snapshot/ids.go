package snapshot

import (
	"strconv"
	"sync"

	"github.com/tank-snapshotter/tank/metadata"
)

// idBlock is how many names are taken at once. What a process does not use is never used.
const idBlock = 64

// ids gives out names of directories: short, because overlay's options have to fit into a page, and never the same twice,
// whatever becomes of the transaction that records the directory.
type ids struct {
	mu        sync.Mutex // guards both
	next, end uint64
}

// newDir returns a name below layers/ or snapshots/ that nothing ever had. Not to be called inside a transaction.
func (s *Store) newDir() (string, error) {
	s.ids.mu.Lock()
	defer s.ids.mu.Unlock()
	if s.ids.next == s.ids.end {
		if err := s.db.Update(func(tx *metadata.Tx) (err error) {
			s.ids.next, err = tx.TakeIDs(idBlock)
			return err
		}); err != nil {
			s.ids.next, s.ids.end = 0, 0
			return "", err
		}
		s.ids.end = s.ids.next + idBlock
	}
	s.ids.next++
	return strconv.FormatUint(s.ids.next-1, 10), nil
}
