package unpack_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
)

// setFlags sets or clears flags of a file, as chattr does.
func setFlags(t *testing.T, path string, set, clear int) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^clear|set))
}

// TestRemoveAllGoesOn shows that RemoveAll removes everything that it can and names the rest.
func TestRemoveAllGoesOn(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and in CI nothing may skip")
		}
		t.Skip("needs root")
	}
	const immutable, appendOnly = unix.STATX_ATTR_IMMUTABLE, unix.STATX_ATTR_APPEND // FS_IOC_SETFLAGS has the same bits
	for name, tc := range map[string]struct {
		flags     map[string]int
		mount     string
		want      []string // paths that are left, directories included
		count     int
		protected bool
	}{
		"nothing in the way": {},
		"an immutable file":  {map[string]int{"t/d3/f3": immutable}, "", []string{"t", "t/d3", "t/d3/f3"}, 1, true},
		"an append-only file": {map[string]int{"t/d3/f3": appendOnly}, "", []string{"t", "t/d3", "t/d3/f3"}, 1,
			true},
		"files side by side": {map[string]int{"t/f0": immutable, "t/f9": immutable}, "",
			[]string{"t", "t/f0", "t/f9"}, 2, true},
		"an immutable directory": {map[string]int{"t/d3": immutable}, "",
			[]string{"t", "t/d3", "t/d3/f0", "t/d3/f1", "t/d3/f2", "t/d3/f3"}, 4, true},
		"an immutable empty directory": {map[string]int{"t/e": immutable}, "", []string{"t", "t/e"}, 1, true},
		"the top directory": {map[string]int{"t": immutable}, "",
			[]string{"t", "t/d0", "t/d1", "t/d2", "t/d3", "t/e", "t/f0", "t/f9"}, 7, true},
		"a mount":            {nil, "t/d3", []string{"t", "t/d3"}, 1, false},
		"a mount and a flag": {map[string]int{"t/f0": immutable}, "t/d3", []string{"t", "t/d3", "t/f0"}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			for i := range 4 {
				must(t, os.MkdirAll(filepath.Join(base, "t", fmt.Sprint("d", i)), 0o755))
				for j := range 4 {
					must(t, os.WriteFile(filepath.Join(base, "t", fmt.Sprint("d", i), fmt.Sprint("f", j)), nil, 0o644))
				}
			}
			must(t, os.Mkdir(filepath.Join(base, "t/e"), 0o755))
			must(t, os.WriteFile(filepath.Join(base, "t/f0"), nil, 0o644))
			must(t, os.WriteFile(filepath.Join(base, "t/f9"), nil, 0o644))
			if tc.mount != "" {
				must(t, unix.Mount("tmpfs", filepath.Join(base, tc.mount), "tmpfs", 0, "size=64k"))
				t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(base, tc.mount), 0)) })
				must(t, os.WriteFile(filepath.Join(base, tc.mount, "mounted"), nil, 0o644))
			}
			for path, flags := range tc.flags {
				setFlags(t, filepath.Join(base, path), flags, 0)
				t.Cleanup(func() { setFlags(t, filepath.Join(base, path), 0, flags) })
			}
			err := beneath.RemoveAll(context.Background(), openDir(t, base), "t", nil)
			left, rest := leftover.Split(err)
			if rest != nil || (left == nil) != (tc.count == 0) {
				t.Fatalf("error %v", err)
			}
			if left != nil &&
				(left.Count != tc.count || left.Protected != tc.protected || !slices.Contains(tc.want, left.Paths[0])) {
				t.Errorf("%+v", left)
			}
			if left != nil && left.Protected && !errors.Is(err, unix.EPERM) {
				t.Errorf("error %v", err)
			}
			var got []string
			must(t, filepath.WalkDir(base, func(path string, e os.DirEntry, err error) error {
				if rel, _ := filepath.Rel(base, path); rel != "." && e.Name() != "mounted" {
					got = append(got, rel)
				}
				return err
			}))
			if !slices.Equal(got, tc.want) {
				t.Errorf("left %q, want %q", got, tc.want)
			}
			if tc.mount != "" {
				if _, err := os.Stat(filepath.Join(base, tc.mount, "mounted")); err != nil {
					t.Errorf("file in the mount: %v", err)
				}
			}
		})
	}
}
