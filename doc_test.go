package tank_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMap shows that the package doc has a link to every package that other programs can import.
func TestMap(t *testing.T) {
	text, err := os.ReadFile("tank.go")
	must(t, err)
	doc, _, _ := strings.Cut(string(text), "\npackage tank\n")
	must(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == "." {
			return err
		}
		switch name := d.Name(); {
		case name == "internal", name == "testdata", name == "integration", name == "demo",
			strings.HasPrefix(name, "."):
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(path, "*.go"))
		if len(files) > 0 && !strings.Contains(doc, "[github.com/tank-snapshotter/tank/"+path+"]") {
			t.Errorf("no link to package %s", path)
		}
		return err
	}))
}
