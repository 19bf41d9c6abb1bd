package record

import (
	"reflect"
	"testing"

	"github.com/tank-snapshotter/tank/metadata"
)

// FuzzParse: what parse accepts, format writes so that parse reads the same record. A changed byte is noticed.
func FuzzParse(f *testing.F) {
	for _, r := range []Record{
		{Snapshot: metadata.Snapshot{Key: "k", Parent: "p", Labels: map[string]string{"a": "b"}}, Content: true},
		{Snapshot: metadata.Snapshot{Key: "\x00\"é"}, Holders: []metadata.Holder{"containerd"}},
	} {
		line, err := format(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line[:len(line)-1])
	}
	f.Add([]byte("tank snapshot 2 x"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parse(line, "12")
		if err != nil {
			return
		}
		text, err := format(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(text[:len(text)-1], "12")
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%q: %+v, then %+v, %v", line, r, again, err)
		}
	})
}
