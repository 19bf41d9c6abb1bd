package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/parser"
	"go/printer"
	"go/token"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// storage are the directories of the storage code, with everything below them: what decides which
// bytes and records a root has, and when they are acknowledged. Commands, registries and
// credentials are not part of it.
var storage = []string{"binding", "content", "internal", "metadata", "plugin", "snapshot"}

// outside are directories below those of storage that change nothing in a root.
var outside = []string{
	"internal/cause", "internal/containerdconfig", "internal/fsys/fsystest", "internal/ledger", "internal/printable",
	"internal/progress", "internal/reliability", "internal/sourcecheck", "snapshot/model",
}

// codeHash is the hash of the storage code of the repository at root: its Go files without tests
// and comments.
func codeHash(root string) (string, error) {
	names, err := filepath.Glob(filepath.Join(root, "*.go")) // package tank
	if err != nil {
		return "", err
	}
	for _, dir := range storage {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			switch {
			case e.IsDir() && (e.Name() == "testdata" || slices.Contains(outside, filepath.ToSlash(rel))):
				return fs.SkipDir
			case !e.IsDir() && strings.HasSuffix(name, ".go"):
				names = append(names, name)
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "\x00%s\x00", filepath.ToSlash(rel))
		if err := printBare(h, name); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// printBare prints the declarations of a Go file without comments. The empty token.FileSet knows no
// line numbers, so the layout of the file does not count either.
func printBare(w io.Writer, name string) error {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	return (&printer.Config{Mode: printer.RawFormat}).Fprint(w, token.NewFileSet(), f.Decls)
}
