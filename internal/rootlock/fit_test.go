package rootlock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestFit: only what overlay mounts use has to suit overlay, wherever the pools lie.
func TestFit(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount")
		}
		t.Skip("needs root, to mount")
	}
	for name, tc := range map[string]struct {
		dir     string // lies on a file system without extended attributes; "": none does
		overlay string // a part of the reason to refuse it for overlay; "": it is fit
	}{
		"attributes":         {"", ""},
		"none":               {".", "its file system (ramfs)"},
		"none for layers":    {"layers", "directory layers: its file system (ramfs)"},
		"none for snapshots": {"snapshots", "directory snapshots: its file system (ramfs)"},
		"none for rootfs":    {"rootfs", ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			if tc.dir != "" {
				dir := filepath.Join(root, tc.dir)
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if tc.dir != "." { // a mount in a directory does not make it a root
					writeTestMark(t, root)
				}
				if err := unix.Mount("ramfs", dir, "ramfs", 0, "mode=700"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(dir, 0); err != nil {
						t.Error(err)
					}
				})
			}
			if tc.dir == "." {
				if _, err := Take(root, &Options{Make: true, Overlay: true}); !errdefs.IsFailedPrecondition(err) ||
					!strings.Contains(err.Error(), tc.overlay) {
					t.Errorf("a new root: %v", err)
				}
				if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
					t.Errorf("a refused root has %v, %v", left, err)
				}
				writeTestMark(t, root)
			}
			l, err := Take(root, &Options{Make: true})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for _, dir := range []string{"layers", "snapshots", "rootfs"} {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			l.made = false // as in the next process
			if err := l.Fit(false); err != nil {
				t.Errorf("without overlay: %v", err)
			}
			err = l.Fit(true)
			if (err != nil) != (tc.overlay != "") || err != nil &&
				(!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.overlay)) {
				t.Errorf("with overlay: %v", err)
			}
		})
	}
}

func writeTestMark(t *testing.T, root string) {
	t.Helper()
	text := mark{format: markFormat}.String()
	if err := os.WriteFile(filepath.Join(root, markName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
