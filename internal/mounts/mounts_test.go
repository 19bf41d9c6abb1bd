package mounts

import (
	"slices"
	"testing"
)

func TestFind(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil,
		"rw,lowerdir=/r/layers/2/fs:/r/layers/1/fs,upperdir=/r/snapshots/7/fs,workdir=/r/snapshots/7/work": {
			"snapshots/7", "snapshots/7", "layers/2", "layers/1",
		},
		"/r/layers/3/":               {"layers/3"},
		"/other/r2/layers/3/fs":      nil,
		"/r/rootfs/sha256/aa/layers": nil,
	} {
		if got := find(nil, text, "/r"); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestUsingNothing shows that Using reports no directory that has no mount, and accepts an empty list.
func TestUsingNothing(t *testing.T) {
	for _, dirs := range [][]string{nil, {"layers/1"}} {
		if at, err := Using(t.TempDir(), dirs); at != "" || err != nil {
			t.Errorf("%q: %q, %v", dirs, at, err)
		}
	}
}
