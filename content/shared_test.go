package content

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// transactions returns the number of the database's last transaction, which bbolt writes to one of
// the first two pages.
func (r *root) transactions() (last uint64) {
	r.t.Helper()
	f, err := os.Open(filepath.Join(r.path, "metadata.db"))
	must(r.t, err)
	defer f.Close()
	for page := range int64(2) {
		var number [8]byte
		_, err := f.ReadAt(number[:], page*int64(os.Getpagesize())+64)
		must(r.t, err)
		last = max(last, binary.LittleEndian.Uint64(number[:]))
	}
	return last
}

// TestHoldsAtOnceShareTransactions shows that holds which are recorded at once share transactions.
// A transaction costs two flushes of the disk, and containerd asks for all blobs of an image at
// once.
func TestHoldsAtOnceShareTransactions(t *testing.T) {
	const n = 64
	r := open(t, t.TempDir(), nil)
	var blobs []digest.Digest
	for i := range n {
		blobs = append(blobs, put(t, r.For(alice), fmt.Sprint(i)))
	}
	began, end := make(chan struct{}), make(chan struct{})
	var busy, calling, all sync.WaitGroup
	busy.Go(func() {
		if err := r.db.Update(func(*metadata.Tx) error { close(began); <-end; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-began
	before := r.transactions()
	calling.Add(n)
	for _, d := range blobs {
		all.Go(func() {
			calling.Done()
			if _, err := r.For(bob).Info(t.Context(), d); err != nil {
				t.Error(err)
			}
		})
	}
	calling.Wait()
	close(end)
	busy.Wait()
	all.Wait()
	if used := r.transactions() - before; used > n { // one transaction is that of Update
		t.Errorf("%d holds took %d transactions", n, used-1)
	}
	for _, d := range blobs {
		if len(r.holders(d)) != 2 {
			t.Fatalf("blob %s is held by %v", d, r.holders(d))
		}
	}
}
