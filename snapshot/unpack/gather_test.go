package unpack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// manyFiles returns a layer of files with sizes just below and above the limit for gathering. Other
// entries depend on these files: further names with other attributes, replacements of files, links
// and directories, and files below a replaced file.
func manyFiles(t testing.TB) []byte {
	var items []u.Item
	add := func(i ...u.Item) { items = append(items, i...) }
	for n := range 300 {
		d, data := fmt.Sprintf("d%d/", n%7), strings.Repeat(string(rune('a'+n%26)), n*5)
		add(u.F(fmt.Sprint(d, "f", n), data).At(int64(n), 1))
		switch n % 10 {
		case 1: // the last name sets the attributes of an inode
			add(u.H(fmt.Sprint(d, "h", n), fmt.Sprint(d, "f", n)).Mode(0o600).At(int64(n)+1000, 2))
		case 2:
			add(u.F(fmt.Sprint(d, "f", n), "again").Mode(0o640))
		case 3:
			add(u.H(fmt.Sprint("l", n), fmt.Sprint(d, "f", n)), u.F(fmt.Sprint(d, "f", n), "another inode"))
		case 4:
			add(u.D(fmt.Sprint(d, "f", n)), u.F(fmt.Sprint(d, "f", n, "/below"), data))
		case 5:
			add(
				u.F(fmt.Sprint(d, "x", n, "/a"), data),
				u.F(fmt.Sprint(d, "x", n, "/b"), data),
				u.F(fmt.Sprint(d, "x", n), "no directory"),
			)
		case 6:
			add(u.F(fmt.Sprint(d, "s", n), strings.Repeat("s", 64<<10-1+n%3)))
		case 7:
			add(u.F(fmt.Sprint(d, "a", n), data).Xattr("user.a", "1").Mode(0o444))
		}
	}
	return u.Tar(t, items...)
}

// TestGathered shows that files that other goroutines fill match their entries, with one goroutine
// and with several.
func TestGathered(t *testing.T) {
	raw := manyFiles(t)
	var want []string
	for _, procs := range []int{1, 2, 8} {
		restore := runtime.GOMAXPROCS(procs)
		dir := t.TempDir()
		o := extractAndCompare(openDir(t, dir), raw, userOptions())
		runtime.GOMAXPROCS(restore)
		if o.Err != "" || o.Disagree != "" {
			t.Fatalf("%d: %+v", procs, o)
		}
		got := u.List(t, dir)
		if procs == 1 {
			want = got
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%d goroutines make a different tree than one goroutine", procs)
		}
		for file, data := range map[string]string{"d2/f2": "again", "l3": strings.Repeat("d", 15),
			"d3/f3": "another inode", "d5/x5": "no directory"} {
			if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(b) != data {
				t.Errorf("%d: %s: %q, %v", procs, file, b, err)
			}
		}
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, "d1/f1"), &st))
		if st.Mode&0o7777 != 0o600 || st.Mtim.Sec != 1001 {
			t.Errorf("%d: mode %o, time %d", procs, st.Mode, st.Mtim.Sec)
		}
	}
}

// TestGatheredFaults shows that an error of a goroutine that fills files is the error of the
// extraction, and that no descriptor stays open.
func TestGatheredFaults(t *testing.T) {
	raw := manyFiles(t)
	var small []u.Item
	for n := range 2000 {
		small = append(small, u.F(fmt.Sprintf("d%d/f%d", n%5, n), strings.Repeat("x", 4096)))
	}
	full := u.Tar(t, small...)
	extract := func(t *testing.T, dir string, raw []byte) (err error) {
		files, before := openFiles(t), runtime.NumGoroutine()
		f, err := os.Open(dir)
		must(t, err)
		func() {
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("panic: %v", p)
				}
			}()
			_, err = unpack.Extract(context.Background(), f, bytes.NewReader(raw), userOptions())
		}()
		must(t, f.Close())
		if n := openFiles(t); n != files {
			t.Errorf("%d files were left open", n-files)
		}
		for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) { // enough time for a goroutine that is about to end
				t.Fatalf("%d goroutines were left", runtime.NumGoroutine()-before)
			}
		}
		return err
	}
	t.Run("cut", func(t *testing.T) {
		cuts := 0
		for cut := len(raw) / 3; cut < len(raw)-2000; cut += len(raw)/20 + 1 {
			switch err := extract(t, t.TempDir(), raw[:cut]); {
			case errors.Is(err, stream.ErrInvalidLayer):
				cuts++
			case err != nil: // no error: cut within padding
				t.Errorf("cut at %d: %v", cut, err)
			}
		}
		if cuts < 5 {
			t.Errorf("only %d cuts were detected", cuts)
		}
	})
	t.Run("full", func(t *testing.T) {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
			skipOrFail(t, "mount: "+err.Error())
		}
		defer func() { must(t, unix.Unmount(dir, 0)) }()
		if err := extract(t, dir, full); !errors.Is(err, unix.ENOSPC) || errors.Is(err, stream.ErrInvalidLayer) {
			t.Errorf("a full disk: %v", err)
		}
	})
	t.Run("few descriptors", func(t *testing.T) {
		var limit, low unix.Rlimit
		must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		low = limit
		low.Cur = uint64(openFiles(t)) + 24
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
		defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
		var deep []u.Item
		for n := range 300 {
			deep = append(deep, u.F(fmt.Sprintf("x%d/y%d/f%d", n%40, n%20, n), "f"))
		}
		for _, raw := range [][]byte{full, u.Tar(t, deep...)} {
			f, err := os.Open(t.TempDir())
			must(t, err)
			if _, err := unpack.Extract(context.Background(), f, bytes.NewReader(raw), userOptions()); err != nil {
				t.Error(err)
			}
			must(t, f.Close())
		}
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(names)
}
