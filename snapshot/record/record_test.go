package record_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sample is a record with every field. The n-th one can be told apart.
func sample(n int) record.Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, n, time.UTC)
	return record.Record{
		Snapshot: metadata.Snapshot{
			Key: "containerd/d1/k8s.io/7/a b\"c", Kind: metadata.Active, Parent: "p",
			Labels:  map[string]string{"a": "b"},
			Created: at, Updated: at, FullCopy: true, Remapped: true, Layer: "sha256:1",
			Fixup: "fixup/sha256:2", ViewRoot: "fixup/sha256:3", Size: int64(n), Inodes: 4,
		},
		Content: true,
		Holders: []metadata.Holder{"containerd/d1", "other"},
	}
}

// entry makes the directory of a snapshot with the first n records.
func entry(t testing.TB, n int) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "snapshots", "17")
	must(t, os.MkdirAll(dir, 0o700))
	for i := range n {
		if i == 0 {
			must(t, record.Create(dir, sample(0)))
			continue
		}
		must(t, record.Append(fsys.OS, dir, sample(i), true))
	}
	return dir
}

func size(t testing.TB, dir string) int64 {
	t.Helper()
	r, err := record.Read(dir)
	must(t, err)
	return r.Size
}

// TestRoundTrip: every field comes back, and the directory comes from the place of the file.
func TestRoundTrip(t *testing.T) {
	dir := entry(t, 1)
	got, err := record.Read(dir)
	must(t, err)
	want := sample(0)
	want.Dir = "17"
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("%+v, want\n%+v", got, want)
	}
	view := sample(1)
	view.Content, view.Dir = false, "the name that it had"
	must(t, record.Append(fsys.OS, dir, view, true))
	if got, err = record.Read(dir); err != nil || got.Dir != "" || got.RecordDir != "17" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestDamage: what a crash leaves of the last line is no damage, and everything else is.
func TestDamage(t *testing.T) {
	third := func(text []byte) int { return bytes.LastIndexByte(text[:len(text)-1], '\n') }
	newer := func(text []byte) []byte {
		return append(text, fmt.Appendf(nil, "tank snapshot 2 %016x {}\n", xxh3.Hash([]byte("{}")))...)
	}
	for _, row := range []struct {
		name  string
		spoil func(text []byte) []byte
		want  int64 // Size of the record that is read
		err   func(error) bool
		check func(error) bool
	}{
		{"whole", func(b []byte) []byte { return b }, 2, nil, nil},
		{"the last line is cut", func(b []byte) []byte { return b[:len(b)-9] }, 1, nil, nil},
		{"the last newline is missing", func(b []byte) []byte { return b[:len(b)-1] }, 1, nil, nil},
		{"zeros in place of the last line", func(b []byte) []byte { clear(b[third(b)+8:]); return b }, 1, nil, nil},
		{"zeros in the last line", func(b []byte) []byte { clear(b[len(b)-20 : len(b)-5]); return b }, 1, nil, nil},
		{"a bit in the last line", func(b []byte) []byte { b[len(b)-9] ^= 1; return b }, 1, nil, errdefs.IsDataLoss},
		{"a bit in the first line", func(b []byte) []byte { b[40] ^= 1; return b }, 2, nil, errdefs.IsDataLoss},
		{"a bit in the sum", func(b []byte) []byte { b[18] ^= 1; return b }, 2, nil, errdefs.IsDataLoss},
		{"a newline in the middle", func(b []byte) []byte { b[30] = '\n'; return b }, 2, nil, errdefs.IsDataLoss},
		{"empty", func(b []byte) []byte { return nil }, 0, errdefs.IsDataLoss, errdefs.IsDataLoss},
		{"another file", func(b []byte) []byte { return []byte("{}\n") }, 0, errdefs.IsDataLoss, errdefs.IsDataLoss},
		{"zeros", func(b []byte) []byte { clear(b); return b }, 0, errdefs.IsDataLoss, errdefs.IsDataLoss},
		{"of a newer version", newer, 0, errdefs.IsFailedPrecondition, nil},
		{"no record in a line", func(b []byte) []byte {
			return append(b, fmt.Appendf(nil, "tank snapshot 1 %016x {}\n", xxh3.Hash([]byte("{}")))...)
		}, 2, nil, errdefs.IsDataLoss},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := entry(t, 3)
			path := filepath.Join(dir, record.Name)
			text, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, row.spoil(text), 0o600))
			got, err := record.Read(dir)
			if row.err == nil && (err != nil || got.Size != row.want) || row.err != nil && !row.err(err) {
				t.Errorf("record %d, error %v", got.Size, err)
			}
			err = record.Check(dir)
			if row.check == nil && err != nil || row.check != nil && !row.check(err) {
				t.Errorf("check: %v", err)
			}
			// The next change is whole, whatever was there.
			must(t, record.Append(fsys.OS, dir, sample(9), false))
			if _, err := record.Read(dir); err == nil && size(t, dir) != 9 {
				t.Errorf("after a change: record %d", size(t, dir))
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		dir := entry(t, 0)
		if _, err := record.Read(dir); !errdefs.IsNotFound(err) {
			t.Errorf("read: %v", err)
		}
		must(t, record.Check(dir))
		must(t, record.Append(fsys.OS, dir, sample(5), false))
		if size(t, dir) != 5 {
			t.Error("a missing record was not made")
		}
	})
	t.Run("a pipe", func(t *testing.T) {
		dir := entry(t, 0)
		must(t, os.Symlink("/dev/zero", filepath.Join(dir, record.Name)))
		if _, err := record.Read(dir); !errdefs.IsDataLoss(err) {
			t.Errorf("read: %v", err)
		}
		must(t, record.Append(fsys.OS, dir, sample(5), false))
		if size(t, dir) != 5 {
			t.Error("the link was not replaced")
		}
	})
}

// TestLong: a record that changes often stays small.
func TestLong(t *testing.T) {
	dir := entry(t, 1)
	for i := range 1000 {
		must(t, record.Append(fsys.OS, dir, sample(i), false))
	}
	fi, err := os.Stat(filepath.Join(dir, record.Name))
	must(t, err)
	if fi.Size() > 70<<10 || size(t, dir) != 999 {
		t.Errorf("%d bytes, record %d", fi.Size(), size(t, dir))
	}
}

// TestCrash stops the machine at each operation, before it, in its middle and after it: the record is the former or
// the new one.
func TestCrash(t *testing.T) {
	for _, long := range []bool{false, true} {
		for _, at := range []string{"", " during", " after"} {
			fsystest.Each("crash"+at, func(fault string) (hit bool) {
				dir := entry(t, 1)
				if long {
					text := bytes.Repeat([]byte("x"), 70<<10)
					f, err := os.OpenFile(filepath.Join(dir, record.Name), os.O_WRONLY|os.O_APPEND, 0)
					must(t, err)
					_, err = f.Write(text)
					must(t, err)
					must(t, f.Close())
				}
				fs := fsystest.New(t, dir, fault)
				err := record.Append(fs, dir, sample(1), true)
				if is := size(t, dir); is > 1 || err == nil && is != 1 {
					t.Errorf("%s: record %d, error %v", fault, is, err)
				}
				return fs.Hits() > 0
			})
		}
	}
}

// TestErrorsHaveAClass: every error has a class of errdefs.
func TestErrorsHaveAClass(t *testing.T) {
	dir := entry(t, 1)
	for _, fault := range []string{"open *: fail ENOSPC", "write *: fail ENOSPC", "sync *: fail ENOSPC"} {
		fs := fsystest.New(t, dir, fault)
		if err := record.Append(fs, dir, sample(1), true); !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", fault, err)
		}
	}
	if err := record.Replace(fsystest.New(t, dir, "create: fail ENOSPC"), dir, sample(1)); !errdefs.IsResourceExhausted(
		err,
	) {
		t.Error(err)
	}
	if err := record.Create(filepath.Join(dir, "missing"), sample(1)); !errdefs.IsInternal(err) {
		t.Error(err)
	}
}

// TestRecover: the later record of a key counts, and what is no record is listed.
func TestRecover(t *testing.T) {
	root := t.TempDir()
	put := func(name, key string, n int) {
		dir := filepath.Join(root, "snapshots", name)
		must(t, os.MkdirAll(dir, 0o700))
		r := sample(n)
		r.Key = key
		must(t, record.Create(dir, r))
	}
	if found, err := record.Recover(context.Background(), root); err != nil || len(found.Records) > 0 {
		t.Errorf("without snapshots/: %+v, %v", found, err)
	}
	put("1", "b", 1)
	put("2", "a", 2)
	put("10", "a", 1)
	put("3", "a", 3)
	put(".snapshot-1-1", "c", 1)
	put("lost+found", "d", 1)
	must(t, os.Mkdir(filepath.Join(root, "snapshots", "4"), 0o700))
	found, err := record.Recover(context.Background(), root)
	must(t, err)
	var got []string
	for _, r := range found.Records {
		got = append(got, r.Key+"="+r.Dir)
	}
	for _, r := range found.Superseded {
		got = append(got, "superseded "+r.Dir)
	}
	slices.Sort(got[len(found.Records):])
	if want := "a=3 b=1 superseded 10 superseded 2"; strings.Join(got, " ") != want ||
		!slices.Equal(found.Unreadable, []string{"4"}) {
		t.Errorf("%q and %q, want %s", got, found.Unreadable, want)
	}
	must(t, os.WriteFile(filepath.Join(root, "snapshots", "1", record.Name), []byte("tank snapshot 2 x\n"), 0o600))
	if _, err := record.Recover(context.Background(), root); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a newer record: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	dir := entry(f, 3)
	text, err := os.ReadFile(filepath.Join(dir, record.Name))
	must(f, err)
	f.Add(text)
	f.Add(text[:len(text)-7])
	f.Add([]byte("tank snapshot 1 x {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		must(t, os.WriteFile(filepath.Join(dir, record.Name), text, 0o600))
		r, err := record.Read(dir)
		if err == nil && (r.Key == "" || r.Entry() != "17") {
			t.Errorf("%+v", r)
		}
		if err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Error(err)
		}
	})
}
