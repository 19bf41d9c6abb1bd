package fsys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank/internal/errclass"
)

// TestOSCostsNothing shows that the seam adds no allocation to a step, and that files are those of
// package os.
func TestOSCostsNothing(t *testing.T) {
	built := 0
	fill := func() error { built++; return nil }
	if n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(OS.Build("", fill, fill), OS.RemoveTree("", fill), OS.Commit("", fill)); err != nil {
			t.Error(err)
		}
	}); n != 0 || built != 4*101 {
		t.Errorf("%v allocations, %d calls", n, built)
	}
	f, err := OS.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := f.(*os.File); !ok {
		t.Errorf("a file is a %T", f)
	}
}

func TestOSErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	f, err := OS.OpenFile(missing, os.O_RDWR, 0)
	if f != nil {
		t.Error("a file that could not be opened is not nil")
	}
	failed := errors.New("failed")
	for name, err := range map[string]error{
		"open": err, "syncdir": OS.SyncDir(missing), "syncfs": OS.Syncfs(missing),
	} {
		if !errors.Is(err, fs.ErrNotExist) || errclass.Of(err) == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	synced := func() error { t.Error("synced after an error"); return nil }
	if err := OS.Build(missing, func() error { return failed }, synced); !errors.Is(err, failed) {
		t.Errorf("build: %v", err)
	}
	if err := OS.Build(missing, func() error { return nil }, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("sync of a build: %v", err)
	}
}
