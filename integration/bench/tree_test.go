package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestTree: trees count as equal if only the times of their directories differ.
func TestTree(t *testing.T) {
	base := treeWith(t, nil)
	for name, tc := range map[string]struct {
		change func(dir string) error
		same   bool
	}{
		"nothing": {func(string) error { return nil }, true},
		"directory's times": {
			func(dir string) error { return os.Chtimes(filepath.Join(dir, "d"), time.Unix(9, 0), time.Unix(9, 0)) },
			true},
		"file's time": {
			func(dir string) error { return os.Chtimes(filepath.Join(dir, "d/f"), time.Unix(9, 0), time.Unix(9, 0)) },
			false},
		"mode": {func(dir string) error { return os.Chmod(filepath.Join(dir, "d/f"), 0o600) }, false},
		"size": {func(dir string) error { return os.Truncate(filepath.Join(dir, "d/f"), 1) }, false},
		"another link": {
			func(dir string) error { return os.Link(filepath.Join(dir, "d/f"), filepath.Join(dir, "d/g")) }, false},
		"link's target": {func(dir string) error {
			if err := os.Remove(filepath.Join(dir, "l")); err != nil {
				return err
			}
			return os.Symlink("e", filepath.Join(dir, "l"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := treeWith(t, tc.change); (got == base) != tc.same {
				t.Errorf("%s, unchanged %s", got, base)
			}
		})
	}
}

// treeWith returns the hash of a directory after a change.
func treeWith(t *testing.T, change func(string) error) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d/f"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"d/f", "d/g"} { // equal times, except where the case set one
		fi, err := os.Stat(filepath.Join(dir, name))
		if err == nil && fi.ModTime().Unix() != 9 {
			err = os.Chtimes(filepath.Join(dir, name), time.Unix(5, 0), time.Unix(5, 0))
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	tree, err := treeOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}
