package tank_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank"
)

// TestNewerFormat shows that Open and Rebuild refuse a root of a newer version with an error that
// names the reason, and change nothing in it.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		daemon bool
		make   func(dir string) error
	}{
		"mark": {false, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "tank-root"), []byte("tank root 2\nwhatever\n"), 0o600)
		}},
		"mark of a daemon": {true, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "tank-root"), []byte("tank root 10\ndaemon\n"), 0o600)
		}},
		"database":                     {false, setSchema("2")},
		"database of a daemon":         {true, setSchema("2")},
		"database of no number at all": {false, setSchema("2b")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRebuildRoot(t, tc.daemon)
			must(t, tc.make(r.dir))
			refused(t, name, r.dir, errdefs.ErrFailedPrecondition)
			tk, err := tank.Open(r.dir, nil)
			if err == nil {
				tk.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "newer Tank") || !strings.Contains(err.Error(), r.dir) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// setSchema returns a function that writes the schema number of a database.
func setSchema(number string) func(dir string) error {
	return func(dir string) error {
		db, err := bolt.Open(filepath.Join(dir, "metadata.db"), 0o600, nil)
		if err != nil {
			return err
		}
		defer db.Close()
		return db.Update(
			func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("schema"), []byte(number)) })
	}
}
