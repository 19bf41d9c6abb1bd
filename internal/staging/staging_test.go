package staging

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLeft(t *testing.T) {
	dir := t.TempDir()
	before, now := New(), New()
	touch := func(path string) string {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	left := []string{touch(before.In(dir, "layer-abc")), touch(before.In(dir, "trash")), touch(filepath.Join(dir, ".other"))}
	touch(now.In(dir, "layer-abc"))
	touch(filepath.Join(dir, "17"))
	touch(filepath.Join(dir, "lost+found"))
	found, err := now.Left(t.Context(), dir)
	slices.Sort(left)
	if slices.Sort(found); err != nil || !slices.Equal(found, left) {
		t.Errorf("left %q, %v; want %q", found, err, left)
	}
	if found, err := now.Left(t.Context(), filepath.Join(dir, "none")); err != nil || len(found) > 0 {
		t.Errorf("of a missing directory: %q, %v", found, err)
	}
}

func TestNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		for n, i := New(), 0; i < 100; i++ {
			path := n.In("d", "x")
			if seen[path] || !Is(filepath.Base(path)) || !n.Own(filepath.Base(path)) {
				t.Errorf("name %q", path)
			}
			seen[path] = true
		}
	}
}
