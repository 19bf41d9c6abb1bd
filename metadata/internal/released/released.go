// Package released remembers what was deleted from the database and is not durable yet.
//
// It owns nothing on disk.
//
// Its invariant: what Has reports for a change does not depend on later changes, so a reader that keeps the number
// of the last change sees one state.
//
// The surprising rule: a Set belongs to one transaction. A reader of that transaction, or of a later one, sees the
// deletions itself and must not ask the Set.
package released

import "sync"

// Set are the entries that the changes of one transaction delete.
type Set struct {
	ID int // the number of the transaction

	mu      sync.RWMutex   // guards the fields below
	changes int            // how many were added
	entries map[string]int // entry -> the number of the change that deleted it first
}

// New returns an empty set for a transaction.
func New(id int) *Set { return &Set{ID: id, entries: map[string]int{}} }

// Add adds what one more change deletes.
func (s *Set) Add(entries map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	for e := range entries {
		if _, known := s.entries[e]; !known {
			s.entries[e] = s.changes
		}
	}
}

// Now returns the number of the last change.
func (s *Set) Now() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changes
}

// Has reports whether a change up to this number has deleted an entry.
func (s *Set) Has(entry string, change int) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.entries[entry]
	return ok && n <= change
}
