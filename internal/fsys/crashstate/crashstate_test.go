package crashstate

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tank-snapshotter/tank/internal/fsys"
)

// steps are what a row of TestStates does to a root.
type steps func(f fsys.FS, p func(string) string) error

func all(errs ...error) error { return errors.Join(errs...) }

func write(f fsys.FS, path, data string, sync bool) error {
	file, err := f.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write([]byte(data))
	if err == nil && sync {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// TestStates compares the states that are made with those that are legal: all of them occur, and no others do.
func TestStates(t *testing.T) {
	for name, row := range map[string]struct {
		do    steps
		legal []string
	}{
		"a name that is not synced": {
			func(f fsys.FS, p func(string) string) error { return f.Mkdir(p("d"), 0o700) },
			[]string{"", "d/"},
		},
		"a name that is synced": {
			func(f fsys.FS, p func(string) string) error { return all(f.Mkdir(p("d"), 0o700), f.SyncDir(p("."))) },
			[]string{"d/"},
		},
		"the sync of a file syncs no name": {
			func(f fsys.FS, p func(string) string) error { return write(f, p("a"), "1", true) },
			[]string{"", "a=1"},
		},
		"a synced name of a file without a sync": {
			func(f fsys.FS, p func(string) string) error {
				return all(write(f, p("a"), "12", false), f.SyncDir(p(".")))
			},
			[]string{"a=", "a=1", "a=12", "a=\x00\x00"},
		},
		"a rename is there or not": {
			func(f fsys.FS, p func(string) string) error {
				return all(write(f, p("a"), "1", true), write(f, p("b"), "2", true), f.SyncDir(p(".")),
					f.Rename(p("a"), p("b")))
			},
			[]string{"a=1 b=2", "b=1"},
		},
		"a rename between directories": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Mkdir(p("d"), 0o700), write(f, p("a"), "1", true), f.Syncfs(p(".")),
					f.Rename(p("a"), p("d/b")))
			},
			[]string{"a=1 d/", "d/ d/b=1"},
		},
		"the sync of one directory keeps the whole rename": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Mkdir(p("d"), 0o700), write(f, p("a"), "1", true), f.Syncfs(p(".")),
					f.Rename(p("a"), p("d/b")),
					f.SyncDir(p("d")))
			},
			[]string{"d/ d/b=1"},
		},
		"two directories are independent": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Mkdir(p("d"), 0o700), f.Mkdir(p("e"), 0o700), f.SyncDir(p(".")), f.Mkdir(p("d/1"), 0o700),
					f.Mkdir(p("e/2"), 0o700))
			},
			[]string{"d/ e/", "d/ d/1/ e/", "d/ e/ e/2/", "d/ d/1/ e/ e/2/"},
		},
		"a link": {
			func(f fsys.FS, p func(string) string) error {
				return all(write(f, p("a"), "1", true), f.SyncDir(p(".")), f.Link(p("a"), p("b")))
			},
			[]string{"a=1", "a=1 b=1"},
		},
		"a removal": {
			func(f fsys.FS, p func(string) string) error {
				return all(write(f, p("a"), "1", true), f.SyncDir(p(".")), f.Remove(p("a")))
			},
			[]string{"a=1", ""},
		},
		"a removed tree": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Mkdir(p("d"), 0o700), write(f, p("d/a"), "1", true), f.Syncfs(p(".")),
					f.RemoveTree(p("d"), func() error { return os.RemoveAll(p("d")) }))
			},
			[]string{"d/ d/a=1", "d/", ""},
		},
		"the commit of a database syncs nothing else": {
			func(f fsys.FS, p func(string) string) error {
				return all(write(f, p("db"), "1", true), f.SyncDir(p(".")), f.Mkdir(p("d"), 0o700),
					f.Commit(p("db"), func() error { return os.WriteFile(p("db"), []byte("2"), 0o600) }))
			},
			[]string{"db=2", "d/ db=2"},
		},
		"a directory without a sync": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Build(p("d"), fill(p), nil), f.SyncDir(p(".")))
			},
			[]string{"d/", "d/ d/a=", "d/ d/a=1", "d/ d/a=\x00"},
		},
		"a directory with a sync": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Build(p("d"), fill(p), func() error { return nil }), f.SyncDir(p(".")))
			},
			[]string{"d/ d/a=1"},
		},
		"a file that is cut": {
			func(f fsys.FS, p func(string) string) error {
				file, err := f.OpenFile(p("a"), os.O_RDWR|os.O_CREATE, 0o600)
				if err != nil {
					return err
				}
				_, err = file.WriteAt([]byte("12"), 0)
				return all(err, file.Sync(), f.SyncDir(p(".")), file.Truncate(1), file.Close())
			},
			[]string{"a=1", "a=12"},
		},
		"a file that grows": {
			func(f fsys.FS, p func(string) string) error {
				err := all(write(f, p("a"), "1", true), f.SyncDir(p(".")))
				file, oerr := f.OpenFile(p("a"), os.O_WRONLY|os.O_APPEND, 0)
				if oerr != nil {
					return oerr
				}
				_, werr := file.Write([]byte("2"))
				return all(err, werr, file.Close())
			},
			[]string{"a=1", "a=12", "a=1\x00"},
		},
		"what a container writes": {
			func(f fsys.FS, p func(string) string) error {
				return all(f.Mkdir(p("d"), 0o700), f.SyncDir(p(".")), os.Mkdir(p("d/e"), 0o700),
					f.(*Recorder).Changed(p("d/e")))
			},
			[]string{"d/", "d/ d/e/"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(root, 0o700))
			r := NewRecorder(root)
			if err := row.do(r, func(name string) string { return filepath.Join(root, name) }); err != nil {
				t.Fatal(err)
			}
			got := map[string]bool{}
			for n := range 200 {
				got[makeState(t, r, uint64(n), r.Position())] = true
			}
			slices.Sort(row.legal)
			if all := slices.Sorted(maps.Keys(got)); !slices.Equal(all, row.legal) {
				t.Errorf("states %q, want %q", all, row.legal)
			}
		})
	}
}

// fill makes a directory with a file.
func fill(p func(string) string) func() error {
	return func() error {
		return errors.Join(os.Mkdir(p("d"), 0o700), os.WriteFile(p("d/a"), []byte("1"), 0o600))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeState makes a state and describes it: directories, and files with their content.
func makeState(t *testing.T, r *Recorder, seed uint64, at int) string {
	t.Helper()
	dir := r.path + ".state"
	if err := r.State(rand.New(rand.NewPCG(seed, 0)), at).Write(dir); err != nil {
		t.Fatal(err)
	}
	text := describe(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return text
}

func describe(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if e.IsDir() {
			lines = append(lines, rel+"/")
			return nil
		}
		if e.Type() == fs.ModeSymlink {
			lines = append(lines, rel+"@")
			return nil
		}
		data, err := os.ReadFile(path)
		lines = append(lines, fmt.Sprintf("%s=%s", rel, data))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// TestUnderWay: at a position, the step with that number has been done or not.
func TestUnderWay(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o700))
	db := filepath.Join(root, "db")
	r := NewRecorder(root)
	commit := func(data string) error {
		return r.Commit(db, func() error { return os.WriteFile(db, []byte(data), 0o600) })
	}
	if err := all(write(r, db, "0", true), r.SyncDir(root), commit("1"), commit("2")); err != nil {
		t.Fatal(err)
	}
	last := r.Position() - 1
	for at, want := range map[int][]string{
		last - 1: {"db=0", "db=1"}, last: {"db=1", "db=2"}, last + 1: {"db=2"},
	} {
		got := map[string]bool{}
		for n := range 50 {
			got[makeState(t, r, uint64(n), at)] = true
		}
		if all := slices.Sorted(maps.Keys(got)); !slices.Equal(all, want) {
			t.Errorf("at %d, before step %q: %q", at, r.Steps()[min(at, last)], all)
		}
	}
}

// TestSame: a number makes the same state again, and a root that was synced comes back as it is, with attributes and
// links.
func TestSame(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o700))
	r := NewRecorder(root)
	p := func(name string) string { return filepath.Join(root, name) }
	err := r.Build(p("d"), func() error {
		return all(os.Mkdir(p("d"), 0o750), os.WriteFile(p("d/a"), []byte("1"), 0o640), os.Link(p("d/a"), p("d/b")),
			os.Symlink("a", p("d/s")))
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(20) {
		if a, b := makeState(t, r, n, r.Position()), makeState(t, r, n, r.Position()); a != b {
			t.Errorf("number %d: %q and %q", n, a, b)
		}
	}
	if err := r.Syncfs(root); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	if err := r.State(rand.New(rand.NewPCG(1, 0)), r.Position()).Write(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/a", "d/b", "d/s"} {
		want, werr := os.Lstat(p(name))
		got, gerr := os.Lstat(filepath.Join(dir, name))
		if werr != nil || gerr != nil || want.Mode() != got.Mode() || !want.ModTime().Equal(got.ModTime()) {
			t.Errorf("%s: %v and %v, %v, %v", name, want, got, werr, gerr)
		}
	}
	a, aerr := os.Stat(filepath.Join(dir, "d/a"))
	b, berr := os.Stat(filepath.Join(dir, "d/b"))
	if aerr != nil || berr != nil || !os.SameFile(a, b) {
		t.Errorf("two names of a file are two files: %v, %v", aerr, berr)
	}
}
