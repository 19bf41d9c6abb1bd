package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// TestDamagedSeal: reading anything but a valid seal ends with an error of class ErrDataLoss, and allocates at most
// 64 MiB.
func TestDamagedSeal(t *testing.T) {
	t.Parallel()
	sealed := func(body []byte) []byte {
		b := append([]byte(sealMagic), body...)
		return binary.BigEndian.AppendUint64(b, xxh3.Hash(b))
	}
	encoded := func(path string) []byte { return AppendEntry(nil, &entry.Entry{Path: path, Type: entry.File}) }
	header := []byte{2, '{', '}'}
	huge := binary.AppendUvarint(nil, 1<<62)
	file := func(b []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, b, 0o600) }
	}
	for _, row := range []struct {
		testName string
		make     func(path string) error
	}{
		{"a pipe", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"a link to a device", func(path string) error { return os.Symlink("/dev/zero", path) }},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"a terabyte of zeros", func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		}},
		{"a terabyte that begins like a seal", func(path string) error {
			return errors.Join(os.WriteFile(path, []byte(sealMagic), 0o600), os.Truncate(path, 1<<40))
		}},
		{"empty", file(nil)},
		{"cut", file([]byte(sealMagic + "abc"))},
		{"another checksum", file(append(sealed(append(header, 0)), 0))},
		{"a huge record", file(sealed(huge))},
		{"a huge number of entries", file(sealed(slices.Concat(header, huge, encoded("a"))))},
		{"too few entries", file(sealed(slices.Concat(header, []byte{1}, encoded("a"), encoded("b"))))},
		{"a huge path", file(sealed(slices.Concat(header, []byte{1}, huge)))},
		{"an unknown type",
			file(sealed(slices.Concat(header, []byte{1}, AppendEntry(nil, &entry.Entry{Path: "a", Type: 99}))))},
		{"a path twice", file(sealed(slices.Concat(header, []byte{2}, encoded("a"), encoded("a"))))},
	} {
		t.Run(row.testName, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "seal")
			if err := row.make(path); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s, err := OpenSeal(context.Background(), path)
			if err == nil {
				err = s.Each(func(*entry.Entry) error { return nil })
			}
			runtime.ReadMemStats(&after)
			if !errdefs.IsDataLoss(err) {
				t.Errorf("got error %v, want one of class data loss", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
				t.Errorf("%d bytes were allocated, want at most 64 MiB", n)
			}
		})
	}
}

// TestFlatten: lists of merged layers, also if other names sort between a directory and its content.
func TestFlatten(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		testName string
		// layers has the entries of each layer, lowest first. An entry is a path and a suffix: / for a directory, //
		// for an opaque one, ! for a whiteout, =group for a hard link.
		layers []string
		want   string
	}{
		{"added", []string{". a/ a/b", ". a/ a/c"}, ". a/ a/b a/c"},
		{"a whiteout hides the content, not names with the same beginning", []string{". a/ a- a-b/ a-b/c a/x", ". a!"},
			". a- a-b/ a-b/c"},
		{"whiteouts before the content of the first", []string{". a/ a-/ a--/ a--/x a-/x a/x", ". a! a-!"},
			". a--/ a--/x"},
		{"an opaque directory", []string{". a/ a-b a/x a/y/ a/y/z", ". a// a/y/ a/y/new"}, ". a/ a-b a/y/ a/y/new"},
		{"a directory, replaced by a file, then by a directory", []string{". a/ a/x", ". a", ". a/ a/y"}, ". a/ a/y"},
		{"a whiteout between two directories", []string{". a/ a/x", ". a!", ". a/ a/y"}, ". a/ a/y"},
		{"an opaque root", []string{". a b/ b/c", ".// d"}, ". d"},
		{"hard links that remain", []string{". a=a b=a c=a", ". a!"}, ". b=b c=b"},
		{"a hard link with one name left", []string{". a=a b=a", ". b"}, ". a b"},
		{"the same group name in two layers", []string{". a=a b=a", ". c=a d=a"}, ". a=a b=a c=c d=c"},
		{"a layer twice", []string{". a=a b=a", ". a!", ". a=a b=a"}, ". a=a b=a"},
		{"nothing", nil, "."},
	} {
		t.Run(row.testName, func(t *testing.T) {
			dir := t.TempDir()
			var seals []*Seal
			for i, l := range row.layers {
				path := filepath.Join(dir, fmt.Sprint(i))
				es := parseEntries(l)
				if err := WriteSeal(path, nil, len(es), ListOf(es), false); err != nil {
					t.Fatal(err)
				}
				s, err := OpenSeal(context.Background(), path)
				if err != nil {
					t.Fatal(err)
				}
				seals = append(seals, s)
			}
			f, err := Flatten(context.Background(), seals)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if err := f.Each(context.Background())(func(e *entry.Entry) error {
				s := e.Path
				if e.Type == entry.Dir && s != "." {
					s += "/"
				}
				if e.Inode != "" {
					s += "=" + e.Inode
				}
				got = append(got, s)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(got, " "); s != row.want || len(got) != f.Count {
				t.Errorf("got %q, %d entries; want %q", s, f.Count, row.want)
			}
		})
	}
}

// parseEntries parses the entries of a layer of TestFlatten.
func parseEntries(line string) (es []*entry.Entry) {
	for _, s := range strings.Fields(line) {
		e := &entry.Entry{Type: entry.File}
		e.Path, e.Inode, _ = strings.Cut(s, "=")
		switch {
		case strings.HasSuffix(s, "!"):
			e.Path, e.Type = strings.TrimSuffix(s, "!"), entry.Whiteout
		case s == ".", strings.HasSuffix(s, "/"):
			e.Type, e.Opaque = entry.Dir, strings.HasSuffix(s, "//")
			e.Path = strings.TrimRight(s, "/")
		}
		es = append(es, e)
	}
	return es
}
