package metadata_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// lockedKiB returns how much memory this process has locked.
func lockedKiB(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmLck:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestResident: the map of the file is locked in memory, and stays so when the file grows and is mapped anew.
func TestResident(t *testing.T) {
	before := lockedKiB(t)
	path := filepath.Join(t.TempDir(), "db")
	db, err := metadata.Open(path, &metadata.Options{Resident: true})
	if err != nil {
		t.Fatal(err)
	}
	atFirst := lockedKiB(t) - before
	if atFirst == 0 {
		t.Error("nothing is locked")
	}
	const records = 2000
	if err := db.Update(func(tx *metadata.Tx) error {
		for n := range records {
			b := metadata.Blob{
				Digest: digest.FromString(fmt.Sprint(n)), Labels: map[string]string{"l": strings.Repeat("x", 1000)},
			}
			if err := tx.PutBlob(b); err != nil {
				return err
			}
			if err := tx.Hold(metadata.Containerd, metadata.BlobNode(b.Digest)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := lockedKiB(t) - before; got < records || got <= atFirst {
		t.Errorf("%d KiB are locked, %d at first", got, atFirst)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if left := lockedKiB(t) - before; left != 0 {
		t.Errorf("%d KiB stay locked", left)
	}
}
