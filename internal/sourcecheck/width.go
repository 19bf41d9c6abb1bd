package main

import (
	"fmt"
	"go/scanner"
	"go/token"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	maxColumns = 120
	tabColumns = 4
)

var (
	linkTarget = regexp.MustCompile(`\]\([^)]*\)`)
	address    = regexp.MustCompile(`https?://\S+`)
)

// columns returns the width of a line. The target of a link and an address, which cannot be broken, do not count.
func columns(line string) int {
	line = linkTarget.ReplaceAllString(line, "]")
	line = address.ReplaceAllString(line, "")
	return utf8.RuneCountInString(line) + strings.Count(line, "\t")*(tabColumns-1)
}

// wide returns the lines that have too many columns.
func (t *tree) wide() (faults []string) {
	for _, c := range []struct {
		ext   string
		check func(text string) []int
	}{{".go", wideGo}, {".md", wideMarkdown}} {
		for _, name := range t.files(c.ext) {
			for _, n := range c.check(t.text[name]) {
				faults = append(faults, fmt.Sprintf("%s:%d: more than %d columns", name, n, maxColumns))
			}
		}
	}
	return faults
}

// wideMarkdown returns the numbers of the lines of a Markdown document that have too many columns. It skips tables,
// headings and blocks of code.
func wideMarkdown(text string) (lines []int) {
	fence, blank, code := false, true, false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fence = !fence
			continue
		}
		indented := strings.HasPrefix(line, "    ")
		code = indented && (blank || code)
		blank = strings.TrimSpace(line) == ""
		if fence || code || strings.HasPrefix(line, "|") || strings.HasPrefix(line, "#") {
			continue
		}
		if columns(line) > maxColumns {
			lines = append(lines, i+1)
		}
	}
	return lines
}

// wideGo returns the numbers of the lines of a Go file that have too many columns. It skips lines that begin inside a
// raw string: they are a script, a document or an expected output.
func wideGo(text string) (lines []int) {
	raw := rawLines(text)
	for i, line := range strings.Split(text, "\n") {
		if !raw[i+1] && columns(line) > maxColumns {
			lines = append(lines, i+1)
		}
	}
	return lines
}

// rawLines returns the numbers of the lines that begin inside a raw string.
func rawLines(text string) map[int]bool {
	lines := map[int]bool{}
	files := token.NewFileSet()
	file := files.AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, []byte(text), nil, 0)
	for {
		pos, tok, literal := s.Scan()
		switch {
		case tok == token.EOF:
			return lines
		case tok == token.STRING && literal[0] == '`':
			first := file.Line(pos)
			for n := range strings.Count(literal, "\n") {
				lines[first+n+1] = true
			}
		}
	}
}
