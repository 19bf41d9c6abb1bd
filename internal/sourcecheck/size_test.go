package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestCrowded finds a package with too many files or lines, and a type with too many methods. Tests and the module of
// integration tests are not counted.
func TestCrowded(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	for i := range maxFiles + 1 {
		files[fmt.Sprintf("many/%d.go", i)] = "package many\n"
		files[fmt.Sprintf("few/%d_test.go", i)] = "package few\n"
	}
	files["long/a.go"] = strings.Repeat("\n", maxLines+1)
	files["integration/a.go"] = strings.Repeat("\n", maxLines+1)
	for i := range maxMethods + 1 {
		files["types/a.go"] += fmt.Sprintf("func (t *T[K]) M%d() {}\n", i)
		files["types/b.go"] += fmt.Sprintf("func F%d(t *T) {}\n", i)
	}
	root := t.TempDir()
	write(t, root, files)
	tree, err := readTree(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		fmt.Sprintf("long: %d lines, at most %d", maxLines+1, maxLines),
		fmt.Sprintf("many: %d files, at most %d", maxFiles+1, maxFiles),
		fmt.Sprintf("types: type T: %d methods, at most %d", maxMethods+1, maxMethods),
	}
	if got := tree.crowded(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
