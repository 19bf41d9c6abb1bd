// Command sourcecheck checks the text of the repository: the width of its lines, the size of its packages and types,
// and that what its comments and documents refer to exists.
//
// It owns no data and writes nothing. Its invariant: it reads only files below the directory that it is
// given, so it needs neither git nor a network. `make lint` runs it, and so do its own tests. A
// surprising rule: it compares the case ids and the names of tests in documents with the code, so
// renaming a test can make it fail.
package main

import (
	"fmt"
	"os"
)

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	faults, err := check(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sourcecheck:", err)
		os.Exit(2)
	}
	for _, f := range faults {
		fmt.Println(f)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// check returns the faults of the repository at root.
func check(root string) ([]string, error) {
	t, err := readTree(root)
	if err != nil {
		return nil, err
	}
	var faults []string
	faults = append(faults, t.wide()...)
	faults = append(faults, t.crowded()...)
	faults = append(faults, t.brokenLinks()...)
	faults = append(faults, t.missingPaths()...)
	faults = append(faults, t.missingPackages()...)
	faults = append(faults, t.missingDecisions()...)
	faults = append(faults, t.unlistedDecisions()...)
	faults = append(faults, t.missingTests()...)
	faults = append(faults, t.missingCases()...)
	faults = append(faults, t.unlisted()...)
	faults = append(faults, t.absentSources()...)
	return faults, nil
}
