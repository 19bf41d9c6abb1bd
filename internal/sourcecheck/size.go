package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// A package of the product that is larger than this has to be divided. The aim is 2,200 lines; the limit leaves room
// for a change that is made before its package is divided.
const (
	maxFiles   = 16
	maxLines   = 2350
	maxMethods = 45
)

var method = regexp.MustCompile(`(?m)^func \(\w* ?\*?(\w+)(?:\[[^\]]*\])?\) `)

// crowded returns the packages that have too many files or lines without their tests, and the types that have too many
// methods.
func (t *tree) crowded() (faults []string) {
	files, lines, methods := map[string]int{}, map[string]int{}, map[string]int{}
	for _, name := range t.files(".go") {
		dir := path.Dir(name)
		if top, _, _ := strings.Cut(dir, "/"); strings.HasSuffix(name, "_test.go") || top == "integration" {
			continue
		}
		files[dir]++
		lines[dir] += strings.Count(t.text[name], "\n")
		for _, m := range method.FindAllStringSubmatch(t.text[name], -1) {
			methods[dir+": type "+m[1]]++
		}
	}
	for _, c := range []struct {
		counts map[string]int
		limit  int
		what   string
	}{{files, maxFiles, "files"}, {lines, maxLines, "lines"}, {methods, maxMethods, "methods"}} {
		for name, n := range c.counts {
			if n > c.limit {
				faults = append(faults, fmt.Sprintf("%s: %d %s, at most %d", name, n, c.what, c.limit))
			}
		}
	}
	slices.Sort(faults)
	return faults
}
