package snapshot

import (
	"os"
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

// newDir returns a name below layers/ and snapshots/ that nothing has. Not to be called inside a transaction.
func (s *Store) newDir() (string, error) {
	s.ids.mu.Lock()
	defer s.ids.mu.Unlock()
	for {
		if s.ids.next == s.ids.end {
			if err := s.takeIDs(); err != nil {
				return "", err
			}
		}
		s.ids.next++
		name := strconv.FormatUint(s.ids.next-1, 10)
		if !exists(s.path("layers", name)) && !exists(s.path("snapshots", name)) { // as after the loss of the database
			return name, nil
		}
	}
}

func (s *Store) takeIDs() error {
	return s.db.Update(func(tx *metadata.Tx) error {
		first, err := tx.TakeIDs(idBlock)
		if err == nil {
			s.ids.next, s.ids.end = first, first+idBlock
		}
		return err
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
