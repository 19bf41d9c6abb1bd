package reserve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk mounts a tmpfs until the test ends.
func disk(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and in CI nothing may skip")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func count(t *testing.T, dir string) int {
	t.Helper()
	names, err := os.ReadDir(filepath.Join(dir, "reserve"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(names)
}

// TestKeep makes a reserve only where it leaves several times its size.
func TestKeep(t *testing.T) {
	for name, tc := range map[string]struct {
		options string
		fill    int
		want    int
	}{
		"room":            {"size=4m", 0, files},
		"hardly any":      {"size=4m", 3200 << 10, 0},
		"a tiny disk":     {"size=256k", 0, 0},
		"few inodes left": {"size=4m,nr_inodes=12", 0, 0},
		"enough inodes":   {"size=4m,nr_inodes=40", 0, files},
	} {
		t.Run(name, func(t *testing.T) {
			dir := disk(t, tc.options)
			must(t, os.WriteFile(filepath.Join(dir, "fill"), make([]byte, tc.fill), 0o600))
			New(dir).Keep()
			if n := count(t, dir); n != tc.want {
				t.Errorf("%d files", n)
			}
			New(dir).Keep()
			if n := count(t, dir); n != tc.want {
				t.Errorf("%d files", n)
			}
		})
	}
}

// TestSpend has the reserve give what a full disk lacks, and come back.
func TestSpend(t *testing.T) {
	for name, fill := range map[string]func(dir string) error{
		"no byte": func(
			dir string) error {
			return os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 8<<20), 0o600)
		},
		"no inode": func(dir string) error {
			for i := range 1000 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("fill", i)), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := disk(t, "size=4m,nr_inodes=100")
			r := New(dir)
			r.Keep()
			if err := fill(dir); !Full(err) {
				t.Fatal("not full", err)
			}
			calls := 0
			need := filepath.Join(dir, "need")
			write := func() error {
				calls++
				return os.WriteFile(need, make([]byte, 4<<10), 0o600)
			}
			must(t, r.Spend(write))
			if calls != 2 || count(t, dir) != 0 {
				t.Errorf("%d calls, %d files", calls, count(t, dir))
			}
			must(t, os.Remove(need))
			r.Restore()
			if n := count(t, dir); n != files {
				t.Errorf("%d files after all is as before", n)
			}
			must(t, New(dir).Spend(write)) // of another process
			New(dir).Keep()
			if n := count(t, dir); n != 0 {
				t.Errorf("%d files on a disk that is almost full", n)
			}
			other := errors.New("other")
			if err := r.Spend(func() error { return other }); !errors.Is(err, other) {
				t.Error(err)
			}
		})
	}
}

// TestNotAReserve leaves alone what only has the name.
func TestNotAReserve(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(elsewhere, "0"), []byte("kept"), 0o600))
	must(t, os.Symlink(elsewhere, filepath.Join(dir, "reserve")))
	r := New(dir)
	r.Keep()
	if r.Give() {
		t.Error("given up")
	}
	must(t, os.Remove(filepath.Join(dir, "reserve")))
	must(t, os.Mkdir(filepath.Join(dir, "reserve"), 0o700))
	must(t, os.Symlink(filepath.Join(elsewhere, "0"), filepath.Join(dir, "reserve/0")))
	r.Give()
	r.Keep()
	if b, err := os.ReadFile(filepath.Join(elsewhere, "0")); err != nil || string(b) != "kept" {
		t.Errorf("behind the link: %.20q, %v", b, err)
	}
}
