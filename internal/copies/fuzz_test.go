package copies

import (
	"bytes"
	"slices"
	"testing"
)

// FuzzParse: whatever is in a file, the records that parse returns survive being written and read again, and a file
// that is not whole never counts as whole after one of its bytes changed.
func FuzzParse(f *testing.F) {
	for _, records := range [][][]byte{nil, {[]byte("a")}, {[]byte("{}"), {}, []byte("last")}} {
		f.Add(format(records), 3, byte(1))
	}
	f.Add([]byte("no head\n"), 0, byte(0))
	f.Fuzz(func(t *testing.T, text []byte, at int, change byte) {
		records, whole, err := parse(text)
		if err != nil {
			return
		}
		again, complete, err := parse(format(records))
		if err != nil || !complete || !slices.EqualFunc(records, again, bytes.Equal) {
			t.Fatalf("%q: %q, then %q, %t, %v", text, records, again, complete, err)
		}
		if !whole || at < 0 || at >= len(text) || change == 0 {
			return
		}
		damaged := slices.Clone(text)
		damaged[at] ^= change
		if got, whole, err := parse(damaged); err == nil && whole && !slices.EqualFunc(records, got, bytes.Equal) {
			t.Errorf("%q with byte %d changed: whole, with %q", text, at, got)
		}
	})
}
