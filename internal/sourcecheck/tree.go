package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A tree has the text of the files that are checked, and the names of all files.
type tree struct {
	text  map[string]string // .go and .md files, by their path relative to the root, with slashes
	names map[string]bool   // all files and directories, in the same form
}

// skipped are directories that hold no source: git's own, and what the Makefile builds.
var skipped = []string{".git", "bin", ".bin"}

func readTree(root string) (*tree, error) {
	t := &tree{text: map[string]string{}, names: map[string]bool{}}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skipped, d.Name()) {
			return filepath.SkipDir
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		t.names[rel] = true
		if ext := path.Ext(rel); !d.Type().IsRegular() || ext != ".go" && ext != ".md" {
			return nil
		}
		b, err := os.ReadFile(name)
		t.text[rel] = string(b)
		return err
	})
	return t, err
}

// files returns the paths of the checked files with an extension, sorted.
func (t *tree) files(ext string) []string {
	var files []string
	for name := range t.text {
		if path.Ext(name) == ext {
			files = append(files, name)
		}
	}
	slices.Sort(files)
	return files
}

// line returns the number of the line of text that the byte at offset is in.
func line(text string, offset int) int {
	return strings.Count(text[:offset], "\n") + 1
}
