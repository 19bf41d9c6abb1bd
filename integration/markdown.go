package integration

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// markdownColumns is the width of the paragraphs that WrapMarkdown makes.
const markdownColumns = 100

var listMark = regexp.MustCompile(`^(- |\d+\. )`)

// WrapMarkdown breaks the long lines of a generated document, each of which is a paragraph, an item of
// a list or the row of a table. The rows of tables, headings and lines of code stay as they are.
func WrapMarkdown(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "    ") {
			lines[i] = wrapLine(line, len(listMark.FindString(line)))
		}
	}
	return strings.Join(lines, "\n")
}

// wrapLine breaks a line at spaces, and indents what continues it. Code between backticks is not broken.
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
