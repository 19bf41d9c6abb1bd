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
	mu        sync.Mutex // guards what follows
	next, end uint64
	spare     uint64 // where the block after this begins; 0 when it is to be taken
}

// few says whether somebody who writes should take the next block along, in the same transaction: it is used only once that
// is durable.
func (i *ids) few() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.spare == 0 && i.end-i.next < idBlock/2
}

// add is told of the block that was taken along. Of two that came at once one is never used.
func (i *ids) add(first uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.spare = first
}

// newDir returns a name below layers/ and snapshots/ that nothing has. Not to be called inside a transaction.
func (s *Store) newDir() (string, error) {
	s.ids.mu.Lock()
	defer s.ids.mu.Unlock()
	for {
		if s.ids.next == s.ids.end && s.ids.spare != 0 {
			s.ids.next, s.ids.end, s.ids.spare = s.ids.spare, s.ids.spare+idBlock, 0
		}
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
