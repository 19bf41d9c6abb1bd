package ocilayout

import (
	"encoding/json"
	"testing"
)

// FuzzParseIndex: of a whole file, parseIndex returns every entry; of a file that was cut, it returns a beginning of
// the list.
func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:a"},{"size":1}]}`), 20)
	f.Add([]byte(`{"manifests": [1, "x", {"a":[]}], "annotations": 3}`), 40)
	f.Add([]byte(`[`), 0)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		file, err := parseIndex(b)
		var want struct {
			Manifests []json.RawMessage `json:"manifests"`
		}
		if e := json.Unmarshal(b, &want); e == nil && len(file.Manifests) != len(want.Manifests) {
			t.Fatalf("%q: %d entries of %d, %v", b, len(file.Manifests), len(want.Manifests), err)
		}
		for _, m := range file.Manifests {
			if !json.Valid(m) {
				t.Fatalf("%q: entry %q", b, m)
			}
		}
		if err != nil || cut < 0 || cut > len(b) {
			return
		}
		if len(listBegins.FindAllIndex(b, 2)) != 1 {
			return
		}
		if some, _ := parseIndex(b[:cut]); len(some.Manifests) > len(file.Manifests) {
			t.Errorf("%q, cut at %d: %d entries of %d", b, cut, len(some.Manifests), len(file.Manifests))
		}
	})
}
