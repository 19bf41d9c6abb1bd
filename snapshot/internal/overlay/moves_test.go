package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

func TestMarkedDirs(t *testing.T) {
	got, err := MarkedDirs(tree.ListOf([]*entry.Entry{
		{Path: ".", Type: entry.Dir, Opaque: true}, {Path: "a", Type: entry.Dir}, {Path: "a/b", Type: entry.Dir},
		{Path: "a/b/c", Type: entry.Whiteout},
		{Path: "a/d", Type: entry.Dir}, {Path: "e", Type: entry.Whiteout}, {Path: "f", Type: entry.Dir},
		{Path: "f/g", Type: entry.Dir, Opaque: true},
		{Path: "f/g/h", Type: entry.Dir},
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"a": true, "a/b": true, "f": true, "f/g": true}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestMovedWhole: Merge moves a directory with its content by one rename, unless the directory is marked or exists
// already.
func TestMovedWhole(t *testing.T) {
	base := t.TempDir()
	from, to := filepath.Join(base, "from"), filepath.Join(base, "to")
	for _, name := range []string{"from/whole/deep", "from/marked/inner", "from/both/new", "to/both/old", "to/file"} {
		if err := os.MkdirAll(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"whole/deep/f", "marked/inner/f", "both/f", "file"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(to, "both/f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inode := func(root, name string) uint64 {
		fi, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t).Ino
	}
	before := map[string]uint64{}
	names := []string{"whole", "whole/deep/f", "marked", "marked/inner", "marked/inner/f", "both", "both/new", "both/f",
		"file"}
	for _, name := range names {
		before[name] = inode(from, name)
	}
	m := Merge{To: to, Move: true, Marked: map[string]bool{"marked": true}}
	if err := m.Run(context.Background(), from); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if made := name == "marked" || name == "both"; made == (inode(to, name) == before[name]) {
			t.Errorf("%s: a new inode: %v, want %v", name, !made, made)
		}
	}
	if _, err := os.Lstat(filepath.Join(to, "both/old")); err != nil {
		t.Error(err)
	}
}

func TestReadDir(t *testing.T) {
	base := t.TempDir()
	want := map[string]uint8{}
	for i := range 1000 {
		name := fmt.Sprintf("%0*d", i%250+1, i)
		want[name] = syscall.DT_REG
		if err := os.WriteFile(filepath.Join(base, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want["d"], want["l"] = syscall.DT_DIR, syscall.DT_LNK
	if err := os.Mkdir(filepath.Join(base, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d", filepath.Join(base, "l")); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	list, err := readDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint8{}
	for _, e := range list {
		got[e.name] = e.kind
	}
	if len(list) != len(want) {
		t.Errorf("%d names, want %d", len(list), len(want))
	}
	for name, kind := range want {
		if k := got[name]; k != kind && k != syscall.DT_UNKNOWN {
			t.Errorf("%s: kind %d, want %d", name, k, kind)
		}
	}
}
