package released

import "testing"

// TestSet: a reader sees the changes up to the one that was the last when it began.
func TestSet(t *testing.T) {
	s := New(7)
	entries := func(names ...string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, n := range names {
			m[n] = struct{}{}
		}
		return m
	}
	none := s.Now()
	s.Add(entries("a", "b"))
	first := s.Now()
	s.Add(entries("b", "c"))
	for _, tc := range []struct {
		entry  string
		change int
		want   bool
	}{
		{"a", none, false}, {"a", first, true}, {"b", first, true}, {"c", first, false},
		{"a", s.Now(), true}, {"b", s.Now(), true}, {"c", s.Now(), true}, {"d", s.Now(), false},
	} {
		if got := s.Has(tc.entry, tc.change); got != tc.want {
			t.Errorf("%q at %d: %t", tc.entry, tc.change, got)
		}
	}
}
