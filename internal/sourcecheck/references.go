package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	notSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	docsPath = regexp.MustCompile(`(?:^|[^\w/.-])(docs/[\w./-]*\w)`)
	// packagePath is a path below a folder of packages, in a document.
	packagePath = regexp.MustCompile("`((?:snapshot|resolver|internal|plugin|metadata|content)/[a-z][a-z0-9_/.]*)`")
	packageLink = regexp.MustCompile(`\[github\.com/tank-snapshotter/tank/([a-z0-9/-]+)\]`)
	decision    = regexp.MustCompile(`\bADR\s+(?://\s*)?0*(\d+)`)
	testName    = regexp.MustCompile(`\b((?:Test|Fuzz)[A-Z]\w*)(\*?)`)
	testFunc    = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
)

// examples is the folder whose tests have references that lead nowhere.
const examples = "internal/sourcecheck/"

// brokenLinks returns the relative links in Markdown whose file or heading does not exist.
func (t *tree) brokenLinks() (faults []string) {
	for _, name := range t.files(".md") {
		text := t.text[name]
		for _, m := range link.FindAllStringSubmatchIndex(text, -1) {
			target := text[m[2]:m[3]]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(target, "#")
			to := name
			if file != "" {
				to = path.Join(path.Dir(name), file)
			}
			at := fmt.Sprintf("%s:%d", name, line(text, m[0]))
			switch {
			case !t.names[to]:
				faults = append(faults, fmt.Sprintf("%s: link to %s, which does not exist", at, to))
			case anchor != "" && !anchors(t.text[to])[anchor]:
				faults = append(faults,
					fmt.Sprintf("%s: link to a heading #%s, which %s does not have", at, anchor, to))
			}
		}
	}
	return faults
}

// anchors returns the names by which links reach the headings of a Markdown document, formed as GitHub forms them.
func anchors(text string) map[string]bool {
	names := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		slug := notSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		names[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return names
}

// missingPaths returns the paths below docs that comments or documents name and that do not exist. A path may leave out
// the end of a file's name, as docs/adr/0012 does.
func (t *tree) missingPaths() (faults []string) {
	return t.missing(docsPath, "does not exist", func(p string) bool {
		for name := range t.names {
			if strings.HasPrefix(name, p) {
				return true
			}
		}
		return false
	}, ".go", ".md")
}

// missingPackages returns the packages that documents name, or that a package doc links to, and that do not exist.
func (t *tree) missingPackages() (faults []string) {
	exists := func(p string) bool { return t.names[p] }
	return append(t.missing(packagePath, "is the path of no package or file", exists, ".md"),
		t.missing(packageLink, "is the path of no package", exists, ".go")...)
}

// missingDecisions returns the references to decision records that do not exist.
func (t *tree) missingDecisions() (faults []string) {
	return t.missing(decision, "is the number of no decision record", func(number string) bool {
		for name := range t.names {
			rest, ok := strings.CutPrefix(name, "docs/adr/")
			if n, _, _ := strings.Cut(rest, "-"); ok && strings.TrimLeft(n, "0") == number {
				return true
			}
		}
		return false
	}, ".go", ".md")
}

// unlistedDecisions returns the decision records that docs/adr/README.md does not link to.
func (t *tree) unlistedDecisions() (faults []string) {
	const index = "docs/adr/README.md"
	for _, name := range t.files(".md") {
		file, ok := strings.CutPrefix(name, "docs/adr/")
		if ok && name != index && !strings.Contains(t.text[index], "]("+file+")") {
			faults = append(faults, fmt.Sprintf("%s: no link to %s", index, file))
		}
	}
	return faults
}

// missingTests returns the tests and fuzz targets that documents name and that do not exist. A name that ends with * is
// the beginning of some test's name.
func (t *tree) missingTests() (faults []string) {
	exists := map[string]bool{}
	for _, name := range t.files(".go") {
		if strings.HasSuffix(name, "_test.go") {
			for _, m := range testFunc.FindAllStringSubmatch(t.text[name], -1) {
				exists[m[1]] = true
			}
		}
	}
	for _, name := range t.files(".md") {
		text := t.text[name]
		for _, m := range testName.FindAllStringSubmatchIndex(text, -1) {
			test, prefix := text[m[2]:m[3]], m[4] < m[5]
			found := exists[test]
			for e := range exists {
				found = found || prefix && strings.HasPrefix(e, test)
			}
			if !found {
				faults = append(faults, fmt.Sprintf("%s:%d: no test is called %s", name, line(text, m[0]), test))
			}
		}
	}
	return faults
}

// missing returns the matches of a pattern's first group, in files with these extensions, for which exists is false.
func (t *tree) missing(pattern *regexp.Regexp, fault string, exists func(string) bool,
	exts ...string) (faults []string) {
	for _, ext := range exts {
		for _, name := range t.files(ext) {
			if strings.HasPrefix(name, examples) {
				continue
			}
			text := t.text[name]
			for _, m := range pattern.FindAllStringSubmatchIndex(text, -1) {
				if found := text[m[2]:m[3]]; !exists(found) {
					faults = append(faults, fmt.Sprintf("%s:%d: %s %s", name, line(text, m[2]), found, fault))
				}
			}
		}
	}
	return faults
}

var (
	caseID  = regexp.MustCompile(`\b([A-E])0?([1-9][0-9]?)\b`)
	caseRow = regexp.MustCompile(`(?m)^\| ([A-E][1-9][0-9]?) \|`)
	charset = regexp.MustCompile(`\bC0, DEL, C1\b|\bDEL, C1\b|\bC1 (as|in)\b`)
)

// casesDocument lists the cases that tests and decision records cite.
const casesDocument = "docs/cases.md"

// missingCases returns the ids of cases that Go files and decision records cite and that docs/cases.md does not list.
// C1 is also a set of control characters; the phrases that speak of it are not looked at.
func (t *tree) missingCases() (faults []string) {
	listed := map[string]bool{}
	for _, m := range caseRow.FindAllStringSubmatch(t.text[casesDocument], -1) {
		if listed[m[1]] {
			faults = append(faults, fmt.Sprintf("%s: two rows of case %s", casesDocument, m[1]))
		}
		listed[m[1]] = true
	}
	for name, text := range t.text {
		if strings.HasPrefix(name, examples) || path.Ext(name) == ".md" && !strings.HasPrefix(name, "docs/adr/") {
			continue
		}
		text = charset.ReplaceAllString(text, "")
		for _, m := range caseID.FindAllStringSubmatch(text, -1) {
			if id := m[1] + m[2]; !listed[id] {
				faults = append(faults, fmt.Sprintf("%s: case %s is no row of %s", name, id, casesDocument))
			}
		}
	}
	slices.Sort(faults)
	return slices.Compact(faults)
}
