package rootdir

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLeft(t *testing.T) {
	dir := t.TempDir()
	before, now := newNames(), newNames()
	touch := func(path string) string {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	left := []string{touch(before.pathIn(dir, "layer-abc")), touch(before.pathIn(dir, "trash")),
		touch(filepath.Join(dir, ".other"))}
	touch(now.pathIn(dir, "layer-abc"))
	touch(filepath.Join(dir, "17"))
	touch(filepath.Join(dir, "lost+found"))
	found, err := now.left(t.Context(), dir)
	slices.Sort(left)
	if slices.Sort(found); err != nil || !slices.Equal(found, left) {
		t.Errorf("left %q, %v; want %q", found, err, left)
	}
	if found, err := now.left(t.Context(), filepath.Join(dir, "none")); err != nil || len(found) > 0 {
		t.Errorf("of a missing directory: %q, %v", found, err)
	}
}

func TestNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		for n, i := newNames(), 0; i < 100; i++ {
			path := n.pathIn("d", "x")
			if seen[path] || !IsStaged(filepath.Base(path)) || !n.made(filepath.Base(path)) {
				t.Errorf("name %q", path)
			}
			seen[path] = true
		}
	}
}
