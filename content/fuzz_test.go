package content

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzState: whatever the state file of an ingest contains, readIngest returns a state that can be
// resumed, or an error.
func FuzzState(f *testing.F) {
	const ref = "pull/alice\x00ref"
	f.Add([]byte(`{"total":9,"started":"2026-01-02T03:04:05Z"}`+"\n"+ref), 3)
	f.Add([]byte("{}\n"+ref), 0)
	f.Add([]byte("\n"), 1)
	base := f.TempDir()
	f.Fuzz(func(t *testing.T, state []byte, size int) {
		dir, err := os.MkdirTemp(base, "")
		must(t, err)
		defer os.RemoveAll(dir)
		dir = filepath.Join(dir, digest.FromString(ref).Encoded())
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "state"), state, 0o600))
		size &= 0xff
		must(t, os.WriteFile(filepath.Join(dir, "data"), make([]byte, size), 0o600))
		st, err := readIngest(dir)
		if err == nil && (st.Ref != ref || st.Total < 0 || st.Offset != int64(size) || st.StartedAt.IsZero()) {
			t.Errorf("%q: %+v", state, st)
		}
	})
}
