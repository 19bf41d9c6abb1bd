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

// Queued is how many writers wait for the one before them.
func (db *DB) Queued() int { return int(db.pending.queued.Load()) }
