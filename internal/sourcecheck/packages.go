package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// architecture lists every package of the product.
const architecture = "docs/architecture.md"

var (
	tableRow = regexp.MustCompile(`(?m)^\| (.*?) \|`)
	code     = regexp.MustCompile("`([\\w./-]+)`")
	absent   = regexp.MustCompile(`\bDESIGN\b|\bthe design's\b|\breliability notes\b`)
)

// unlisted returns the packages that no row of a table in docs/architecture.md names, and the names of packages in the
// first cells of these tables that do not exist. A row may name packages of one folder as `a/b`, `c`.
func (t *tree) unlisted() (faults []string) {
	packages := map[string]bool{}
	for _, name := range t.files(".go") {
		dir := path.Dir(name)
		top, _, _ := strings.Cut(dir, "/")
		if !strings.HasSuffix(name, "_test.go") && dir != "." && top != "integration" &&
			!strings.Contains(dir, "testdata") {
			packages[dir] = true
		}
	}
	listed := map[string]bool{}
	for _, row := range tableRow.FindAllStringSubmatch(t.text[architecture], -1) {
		folder := ""
		for _, m := range code.FindAllStringSubmatch(row[1], -1) {
			name := m[1]
			if !packages[name] && packages[path.Join(folder, name)] {
				name = path.Join(folder, name)
			}
			folder = path.Dir(name)
			listed[name] = true
			if strings.Contains(name, "/") && !packages[name] {
				faults = append(faults, fmt.Sprintf("%s: %s is no package", architecture, name))
			}
		}
	}
	for name := range packages {
		if base := path.Base(name); !listed[name] && !strings.HasSuffix(base, "test") {
			faults = append(faults, fmt.Sprintf("%s: no row of a table is about package %s", architecture, name))
		}
	}
	slices.Sort(faults)
	return faults
}

// absentSources returns the references to documents that are not in the repository.
func (t *tree) absentSources() []string {
	return t.missing(regexp.MustCompile(`(`+absent.String()+`)`), "is not in the repository",
		func(string) bool { return false }, ".go", ".md")
}
