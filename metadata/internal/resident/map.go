// Package resident keeps bbolt's map of its file in memory.
//
// It owns nothing on disk.
//
// Its invariant: after Keep all pages that the file has are in memory, unless that was refused and logged.
//
// The surprising rule: bbolt maps the file anew, elsewhere, when it has outgrown the map. That ends the old locks, so
// Keep is called after each commit.
package resident

import (
	"github.com/containerd/log"
	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/internal/resident"
)

// Map is the part of a map that is locked. The zero value is one of which nothing is.
type Map struct {
	address, size uintptr
	refused       bool
}

// Keep locks the pages that the file has now. No other transaction may change the database meanwhile. It does nothing
// for nil.
func (m *Map) Keep(db *bolt.DB) {
	if m == nil || m.refused {
		return
	}
	var size uintptr
	if err := db.View(func(tx *bolt.Tx) error {
		size = uintptr(tx.Size())
		return nil
	}); err != nil {
		return
	}
	if address := db.Info().Data; address != m.address {
		m.address, m.size = address, 0
	}
	if size <= m.size {
		return
	}
	if err := resident.Lock(m.address+m.size, size-m.size); err != nil {
		m.refused = true
		log.L.WithError(err).Warn("the database is not locked in memory (LimitMEMLOCK=): " +
			"when memory is short and the disk stands still, the daemon may do so as well")
		return
	}
	m.size = size
}
