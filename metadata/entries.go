package metadata

import (
	"bytes"

	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/metadata/internal/released"
)

func entryOf(bucket, key []byte) string { return string(bucket) + "\x00" + string(key) }

// entries are the entries of the buckets, as one transaction sees them.
type entries struct {
	bolt *bolt.Tx
	// drops are the entries that were deleted by drop. nil: they are not noted.
	drops map[string]struct{}
	// released has what a read transaction leaves out: what the changes of UpdateDeferred up to number change have
	// deleted. nil: nothing.
	released *released.Set
	change   int
}

// drop deletes an entry that belongs to a node or a hold.
func (tx *entries) drop(bucket, key []byte) error {
	if tx.drops != nil {
		tx.drops[entryOf(bucket, key)] = struct{}{}
	}
	return tx.bolt.Bucket(bucket).Delete(key)
}

// hides reports whether a read transaction has an entry whose deletion is not durable yet.
func (tx *entries) hides(bucket, key []byte) bool {
	return tx.released != nil && tx.released.Has(entryOf(bucket, key), tx.change)
}

// value returns the value of an entry; nil if there is none.
func (tx *entries) value(bucket, key []byte) []byte {
	v := tx.bolt.Bucket(bucket).Get(key)
	if v != nil && tx.hides(bucket, key) {
		return nil
	}
	return v
}

// page lists the first keys of a bucket with the prefix, at most limit of them, whose rest is greater than after; it
// returns the rests. A negative limit means no limit.
func (tx *entries) page(bucket, prefix []byte, after string, limit int) []string {
	c := tx.bolt.Bucket(bucket).Cursor()
	seek := append(bytes.Clone(prefix), after...)
	k, _ := c.Seek(seek)
	if after != "" && k != nil && bytes.Equal(k, seek) {
		k, _ = c.Next()
	}
	var page []string
	for ; k != nil && bytes.HasPrefix(k, prefix) && (limit < 0 || len(page) < limit); k, _ = c.Next() {
		if !tx.hides(bucket, k) {
			page = append(page, string(k[len(prefix):]))
		}
	}
	return page
}
