package fsystest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/fsys"
)

// story makes, changes and deletes a few files through an FS, and returns the first error.
func story(root string, f fsys.FS) error {
	p := func(name string) string { return filepath.Join(root, name) }
	err := f.Mkdir(p("in"), 0o700)
	if err == nil {
		err = fsys.WriteFile(f, p("in/state"), []byte("state"), 0o600)
	}
	if err != nil {
		return err
	}
	file, err := f.OpenFile(p("in/data"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(file, strings.NewReader("01234567")) // must not go around Write
	steps := []func() error{
		func() error { _, err := file.WriteAt([]byte("89"), 8); return err },
		file.Sync,
		func() error { return file.Chmod(0o400) },
		func() error { return f.Link(p("in/state"), p("other")) },
		func() error { return f.Rename(p("in/data"), p("blob")) },
		func() error { return f.SyncDir(root) },
		func() error { return f.Remove(p("other")) },
		func() error {
			fill := func() error {
				err := os.Mkdir(p("tree"), 0o700)
				return errors.Join(err, os.WriteFile(p("tree/a"), nil, 0o600), os.WriteFile(p("tree/b"), nil, 0o600))
			}
			return f.Build(p("tree"), fill, func() error { return os.WriteFile(p("synced"), nil, 0o600) })
		},
		func() error { return f.Syncfs(root) },
		func() error { return f.RemoveTree(p("tree"), func() error { return os.RemoveAll(p("tree")) }) },
		func() error { return file.Truncate(0) },
		func() error { return f.Commit(p("db"), func() error { return nil }) },
	}
	for _, step := range steps {
		if err == nil {
			err = step()
		}
	}
	return err
}

func TestHistory(t *testing.T) {
	root := t.TempDir()
	f := New(t, root)
	if err := story(root, f); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"mkdir in", "create in/state", "write in/state 0+5", "create in/data", "write in/data 0+8", "write in/data 8+2",
		"sync in/data", "chmod in/data 0400", "link in/state other", "rename in/data blob", "syncdir .", "remove other",
		"build tree sync", "syncfs .", "removetree tree", "truncate in/data 0", "commit db",
	}
	if got := f.History(); !slices.Equal(got, want) {
		t.Errorf("history:\n%s", strings.Join(got, "\n"))
	}
	if err := story(t.TempDir(), fsys.OS); err != nil {
		t.Errorf("fsys.OS: %v", err)
	}
}

// TestFaults runs the story with one fault each, and checks its error, the last line of its history
// and which files are left.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		fault string
		err   error
		last  string
		files string // names below the root, with the sizes of files that are not empty
	}{
		{"mkdir: fail", unix.EIO, "mkdir in = input/output error", ""},
		{"mkdir: fail EEXIST after", unix.EEXIST, "mkdir in = file exists after", "in"},
		{"create */data: fail ENOSPC", unix.ENOSPC, "create in/data = no space left on device", "in in/state:5"},
		{"create #2: fail after", unix.EIO, "create in/data = input/output error after", "in in/data in/state:5"},
		{"write in/data: fail during", unix.EIO, "write in/data 0+8 = input/output error during",
			"in in/data:4 in/state:5"},
		{"write in/data #2: fail", unix.EIO, "write in/data 8+2 = input/output error", "in in/data:8 in/state:5"},
		{"sync: fail EDQUOT", unix.EDQUOT, "sync in/data = disk quota exceeded", "in in/data:10 in/state:5"},
		{"rename blob: crash", ErrCrashed, "rename in/data blob = crash", "in in/data:10 in/state:5 other:5"},
		{"rename blob: crash after", ErrCrashed, "rename in/data blob = crash after", "blob:10 in in/state:5 other:5"},
		{"build: fail", unix.EIO, "build tree sync = input/output error", "blob:10 in in/state:5"},
		{"build: crash during", ErrCrashed, "build tree sync = crash during",
			"blob:10 in in/state:5 tree tree/a tree/b"},
		{
			"build: fail after", unix.EIO, "build tree sync = input/output error after",
			"blob:10 in in/state:5 synced tree tree/a tree/b",
		},
		{
			"removetree tree: fail during", unix.EIO, "removetree tree = input/output error during",
			"blob:10 in in/state:5 synced tree tree/b",
		},
		{"any #16: crash after", ErrCrashed, "truncate in/data 0 = crash after", "blob in in/state:5 synced"},
		{"commit: fail ENOSPC", unix.ENOSPC, "commit db = no space left on device", "blob in in/state:5 synced"},
	} {
		t.Run(tc.fault, func(t *testing.T) {
			root := t.TempDir()
			f := New(t, root, tc.fault)
			err := story(root, f)
			history := f.History()
			if !errors.Is(err, tc.err) || f.Hits() != 1 || history[len(history)-1] != tc.last {
				t.Errorf("%v; %d hits; history:\n%s", err, f.Hits(), strings.Join(history, "\n"))
			}
			if got := list(t, root); got != tc.files {
				t.Errorf("left: %s", got)
			}
		})
	}
}

func list(t *testing.T, root string) string {
	var names []string
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		fi, err := e.Info()
		if err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			name += ":" + string(rune('0'+fi.Size()%10))
			if fi.Size() >= 10 {
				name = strings.TrimSuffix(name, "0") + "10"
			}
		}
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func TestEach(t *testing.T) {
	runs := 0
	Each("fail EIO", func(fault string) bool {
		runs++
		root := t.TempDir()
		f := New(t, root, fault)
		if err := story(root, f); (err != nil) != (f.Hits() == 1) {
			t.Errorf("%s: %d hits, %v", fault, f.Hits(), err)
		}
		return f.Hits() == 1
	})
	if runs != 18 {
		t.Errorf("%d runs for 17 operations", runs)
	}
}

func TestRepeatedFaults(t *testing.T) {
	root := t.TempDir()
	f := New(t, root, "syncdir #2+: fail ENOSPC", "remove: crash")
	got := []bool{f.SyncDir(root) == nil, f.SyncDir(root) == nil, f.SyncDir(root) == nil}
	if !slices.Equal(got, []bool{true, false, false}) {
		t.Errorf("syncdir: %v", got)
	}
	if err := f.Remove(filepath.Join(root, "x")); !errors.Is(err, ErrCrashed) {
		t.Errorf("remove: %v", err)
	}
	if err := f.SyncDir(root); !errors.Is(err, ErrCrashed) {
		t.Errorf("after the crash: %v", err)
	}
	if h := f.History(); h[len(h)-1] != "syncdir . = crashed" {
		t.Errorf("history: %q", h)
	}
}

func TestBefore(t *testing.T) {
	root := t.TempDir()
	f := New(t, root, "mkdir: fail")
	f.Before("mkdir", "a*", func(path string) {
		if err := f.SyncDir(filepath.Dir(path)); err != nil {
			t.Error(err)
		}
	})
	f.Clear()
	f.Before("mkdir", "b*", func(path string) {
		if err := f.SyncDir(filepath.Dir(path)); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(f.Mkdir(filepath.Join(root, "a"), 0o700),
		f.Mkdir(filepath.Join(root, "b"), 0o700)); err != nil {
		t.Error(err)
	}
	if got := f.History(); !slices.Equal(got, []string{"mkdir a", "syncdir .", "mkdir b"}) {
		t.Errorf("history: %q", got)
	}
}

func TestHang(t *testing.T) {
	root := t.TempDir()
	f := New(t, root, "mkdir a: hang", "mkdir b: hang after")
	for _, name := range []string{"a", "b"} {
		done := make(chan error, 1)
		go func() { done <- f.Mkdir(filepath.Join(root, name), 0o700) }()
		<-f.Hung()
		select {
		case err := <-done:
			t.Fatalf("mkdir did not hang: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		if got := list(t, root); got != map[string]string{"a": "", "b": "a b"}[name] {
			t.Errorf("while it hangs: %s", got)
		}
		f.Release()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestParseFault(t *testing.T) {
	for _, line := range []string{
		"", "rename", "rename:", "unlink: fail", "any [: fail", "any a b: fail", "any #0: fail", "any #x: fail",
		"any: explode",
		"any: fail ENOTHING", "any: crash EIO", "any: hang during",
	} {
		if _, err := parseFault(line); err == nil {
			t.Errorf("%q is accepted", line)
		}
	}
}
