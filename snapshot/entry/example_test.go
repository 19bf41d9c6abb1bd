package entry_test

import (
	"fmt"
	"slices"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Lists of a layer begin with the root, and have the content of a directory after the names that sort before its slash.
func ExampleComparePaths() {
	paths := []string{"a/b", "a", ".", "a-b"}
	slices.SortFunc(paths, entry.ComparePaths)
	fmt.Println(paths)
	// Output: [. a a-b a/b]
}
