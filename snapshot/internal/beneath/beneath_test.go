package beneath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpener: both ways of opening refuse symlinks and mount points (A15).
func TestOpener(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"a/b", "out"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"l": "a", "a/up": "../../out"} {
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, walk := range []bool{false, true} {
		for _, tc := range []struct {
			root, path string
			err        error
		}{
			{base, "a", nil},
			{base, "a/b", nil},
			{base, "l", unix.ELOOP},
			{base, "l/b", unix.ELOOP},
			{base, "a/up", unix.ELOOP},
			{base, "none", unix.ENOENT},
			{"/", "proc", unix.EXDEV},
		} {
			root, err := unix.Open(tc.root, DirFlags, 0)
			if err != nil {
				t.Fatal(err)
			}
			o, err := NewOpener(root, walk)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := o.Dir(root, tc.path)
			if err == nil {
				unix.Close(fd)
			}
			if errors.Is(err, unix.ENOTDIR) {
				err = unix.ELOOP // which O_DIRECTORY with O_NOFOLLOW returns for a symlink
			}
			if !errors.Is(err, tc.err) {
				t.Errorf("walk %v, %s: %v, want %v", walk, tc.path, err, tc.err)
			}
			unix.Close(root)
		}
	}
}
