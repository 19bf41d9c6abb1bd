package integration

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// markdownColumns is the width of the paragraphs that WrapMarkdown makes.
const markdownColumns = 100

var listMark = regexp.MustCompile(`^(- |\d+\. )`)

// WrapMarkdown breaks the long lines of a generated document, in which each paragraph, list item and table row is one
// line. Table rows, headings and lines of code stay unchanged.
func WrapMarkdown(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "    ") {
			lines[i] = wrapLine(line, len(listMark.FindString(line)))
		}
	}
	return strings.Join(lines, "\n")
}

// wrapLine breaks a line at spaces, but not in code between backticks, and indents the lines that continue it.
func wrapLine(line string, indent int) string {
	var b strings.Builder
	column, code := 0, false
	for i, word := range strings.Split(line, " ") {
		width := utf8.RuneCountInString(word)
		switch {
		case i == 0:
			column = width
		case !code && column+1+width > markdownColumns:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent + width
		default:
			b.WriteString(" ")
			column += 1 + width
		}
		b.WriteString(word)
		code = code != (strings.Count(word, "`")%2 == 1)
	}
	return b.String()
}
