package tank_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestUnfinishedOnFullDisk shows that a collection keeps the partial downloads of a failed pull,
// which can resume them, unless the disk is almost full.
func TestUnfinishedOnFullDisk(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	push(t, reg, "1", []Item{F("a", strings.Repeat("x", 1<<20))}, []Item{F("b", "y")})
	var blobs atomic.Int32
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			return false
		}
		if blobs.Add(1) < 2 {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	}
	for _, full := range []bool{false, true} {
		r := &root{filepath.Join(t.TempDir(), "root"), false}
		mountTmpfs(t, r.dir, "size=8m,mode=700")
		blobs.Store(0)
		if _, err := r.pull(t, reg.Host+"/x:1", nil); err == nil {
			t.Fatal("the pull succeeded")
		}
		if left := r.left(t); len(left) == 0 {
			t.Fatal("the failed pull left no partial download")
		}
		if full {
			_ = os.WriteFile(filepath.Join(r.dir, "filler"), make([]byte, 8<<20), 0o600)
		}
		r.with(t, func(tk *tank.Tank) {
			_, err := tk.GC(t.Context())
			must(t, err)
		})
		if left := r.left(t); (len(left) == 0) != full {
			t.Errorf("full=%v: left %q", full, left)
		}
	}
}
