package metadata

import bolt "go.etcd.io/bbolt"

// Commits counts the transactions that were written to the file.
func (db *DB) Commits() (n int, err error) {
	err = db.bolt.View(func(tx *bolt.Tx) error {
		n = tx.ID()
		return nil
	})
	return n, err
}

// Queued is the number of writers that wait for another one.
func (db *DB) Queued() int { return int(db.pending.queued.Load()) }
