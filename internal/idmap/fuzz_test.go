package idmap

import "testing"

// FuzzParse: what Parse accepts, String writes so that Parse reads the same map.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"0:100000:65536", "0:0:1,1:2:3", "", "0:0:0", "4294967295:4294967295:4294967295"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(m.String())
		if err != nil || again.String() != m.String() || len(again) != len(m) {
			t.Errorf("%q: %v, then %v, %v", s, m, again, err)
		}
	})
}
