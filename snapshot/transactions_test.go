package snapshot_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// transactions returns the number of transactions that were written to the database, which is the higher transaction ID
// of bbolt's two meta pages.
func (w *world) transactions(t *testing.T) (n int) {
	t.Helper()
	w.db.Flush()
	f, err := os.Open(filepath.Join(w.root, "metadata.db"))
	must(t, err)
	defer f.Close()
	for page := range int64(2) {
		var id [8]byte
		_, err := f.ReadAt(id[:], page*int64(os.Getpagesize())+64)
		must(t, err)
		n = max(n, int(binary.NativeEndian.Uint64(id[:])))
	}
	return n
}

// TestTransactions checks that a container's snapshot costs one transaction. The transaction of a Prepare also contains
// the preceding removal and reserves the next directory names.
func TestTransactions(t *testing.T) {
	const rounds = 200
	w := open(t)
	sn := w.For(holder)
	before := w.transactions(t)
	_, err := sn.Prepare(ctx, "first", "")
	must(t, err)
	for i := range rounds {
		key := fmt.Sprint(i)
		_, err := sn.Prepare(ctx, key, "")
		must(t, err)
		must(t, sn.Remove(ctx, key))
	}
	// On a busy machine there may be more: a removal that no other change follows within a tenth of a second gets a
	// transaction of its own.
	if got := w.transactions(t) - before; got < rounds || got > rounds+rounds/2 {
		t.Errorf("%d transactions for %d snapshots", got, rounds)
	}
}

// TestPrepareAtOnce checks that concurrent Prepares never share a directory.
func TestPrepareAtOnce(t *testing.T) {
	const callers, rounds = 16, 30
	w := open(t)
	sn := w.For(holder)
	var mu sync.Mutex
	owners := map[string]string{}
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range rounds {
				key := fmt.Sprint(c, " ", i)
				ms, err := sn.Prepare(ctx, key, "")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other := owners[ms[0].Source]; other != "" {
					t.Errorf("%s and %s share a directory", key, other)
				}
				owners[ms[0].Source] = key
				mu.Unlock()
				if i%2 == 0 {
					if err := sn.Remove(ctx, key); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(owners) != callers*rounds {
		t.Errorf("%d directories, want %d", len(owners), callers*rounds)
	}
}
