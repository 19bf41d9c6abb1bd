package copies

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
)

func lines(records ...string) func() ([][]byte, error) {
	return func() (all [][]byte, err error) {
		for _, r := range records {
			all = append(all, []byte(r))
		}
		return all, nil
	}
}

func fine([]byte) bool { return true }

func texts(records [][]byte) (all []string) {
	for _, r := range records {
		all = append(all, string(r))
	}
	return all
}

// TestRead lists what can be in a file. Only damaged records are missing from what is read.
func TestRead(t *testing.T) {
	t.Parallel()
	whole := string(format([][]byte{[]byte("one"), []byte("two"), []byte("three")}))
	for name, row := range map[string]struct {
		text  string
		want  []string
		whole bool
	}{
		"whole":        {whole, []string{"one", "two", "three"}, true},
		"no records":   {string(format(nil)), nil, true},
		"empty":        {"", nil, false},
		"changed":      {strings.Replace(whole, "two", "twx", 1), []string{"one", "three"}, false},
		"cut":          {whole[:len(whole)-15], []string{"one", "two"}, false},
		"without end":  {whole[:strings.LastIndex(whole, tail)], []string{"one", "two", "three"}, false},
		"without head": {whole[strings.Index(whole, "\n")+1:], []string{"one", "two", "three"}, false},
		"zeros":        {strings.Repeat("\x00", 1<<16), nil, false},
		"twice":        {whole + whole, []string{"one", "two", "three"}, false},
		"wrong number": {strings.Replace(whole, tail+"3", tail+"4", 1), []string{"one", "two", "three"}, false},
	} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, Images), []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		records, whole, err := Read(root, Images)
		if got := texts(records); err != nil || !slices.Equal(got, row.want) || whole != row.whole {
			t.Errorf("%s: %q, %v, %v", name, got, whole, err)
		}
	}
	root := t.TempDir()
	newer := strings.Replace(whole, head+"1", head+"2", 1)
	if err := os.WriteFile(filepath.Join(root, Images), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(root, Images); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a newer version: %v", err)
	}
}

// TestUpdate writes a file, and interrupts each step of writing another one: the file is the former or the new one.
func TestUpdate(t *testing.T) {
	t.Parallel()
	for _, action := range []string{"fail EIO", "crash before", "crash during", "crash after"} {
		fsystest.Each(action, func(fault string) bool {
			root := t.TempDir()
			if err := newFile(root, Images, nil).update(lines("one"), fine); err != nil {
				t.Fatal(err)
			}
			fs := fsystest.New(t, root, fault)
			err := newFile(root, Images, fs).update(lines("one", "two"), fine)
			records, whole, rerr := Read(root, Images)
			if n := len(records); rerr != nil || !whole || n != 2 && (n != 1 || err == nil) {
				t.Errorf("%s: %d records, whole: %v, %v, %v", fault, n, whole, err, rerr)
			}
			if err := newFile(root, Images, nil).update(lines("one", "two"), fine); err != nil {
				t.Errorf("%s: again: %v", fault, err)
			}
			return fs.Hits() > 0
		})
	}
	root := t.TempDir()
	if err := newFile(root, Images, nil).update(lines(), fine); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(root, Images)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file without records was made: %v", err)
	}
	fs := fsystest.New(t, root)
	for range 2 {
		if err := newFile(root, Images, fs).update(lines("one"), fine); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(strings.Join(fs.History(), "\n"), "create"); n != 1 {
		t.Errorf("the same records were written %d times", n)
	}
}

// TestCopies: the copies follow the database, a damaged copy is a fault, and a directory in its place is replaced.
func TestCopies(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c := New(root, db, nil)
	if none, err := Empty(root); !none || err != nil {
		t.Errorf("a new root: %v, %v", none, err)
	}
	if err := db.Update(func(tx *metadata.Tx) error {
		return metadata.PutBinding(tx, metadata.Binding{ID: "d1", Holder: metadata.Containerd})
	}); err != nil {
		t.Fatal(err)
	}
	faults := func() (n int) {
		if err := c.Check(func(metadata.Fault) { n++ }); err != nil {
			t.Error(err)
		}
		return n
	}
	if faults() != 1 {
		t.Error("a missing copy is no fault")
	}
	if err := os.Mkdir(filepath.Join(root, Bindings), 0o700); err != nil {
		t.Fatal(err)
	}
	c.KeepBindings()
	records, whole, err := Read(root, Bindings)
	if err != nil || !whole || len(records) != 1 || !bytes.Contains(records[0], []byte(`"d1"`)) || faults() != 0 {
		t.Errorf("%q, %v, %v, %d faults", records, whole, err, faults())
	}
	if none, err := Empty(root); none || err != nil {
		t.Errorf("with a binding: %v, %v", none, err)
	}
}
