package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeCharts writes each chart into dir as NAME.svg, and returns the Markdown with which a document beside dir shows
// them.
func writeCharts(dir string, charts []chart) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var links strings.Builder
	for _, c := range charts {
		if err := os.WriteFile(filepath.Join(dir, c.name+".svg"), []byte(c.svg()), 0o644); err != nil {
			return "", err
		}
		fmt.Fprintf(&links, "![%s](%s/%s.svg)\n", c.title, filepath.Base(dir), c.name)
	}
	return links.String(), nil
}

// writeSection replaces the text between the markers of a section in a file.
func writeSection(file, section, text string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+section+": begin -->\n", "<!-- "+section+": end -->"
	head, rest, ok := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s: no markers %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(head+begin+text+end+tail), 0o644)
}
