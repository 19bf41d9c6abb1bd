package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestServeWithoutXattrs starts daemons with a root on a file system without extended attributes. In overlay
// mode serve ends at once with a hint at directory mode; in directory mode it works.
func TestServeWithoutXattrs(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and in CI nothing may skip")
		}
		t.Skip("needs root, to mount")
	}
	for mode, refused := range map[string]bool{"overlay": true, "directory": false} {
		t.Run(mode, func(t *testing.T) {
			ram := t.TempDir()
			if err := unix.Mount("ramfs", ram, "ramfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(ram, 0); err != nil {
					t.Error(err)
				}
			})
			config := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(config, []byte("mode = \""+mode+"\"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			d := startServe(t, nil, nil, "--root", filepath.Join(ram, "root"), "--config", config)
			if !refused {
				d.serving(t, d.address())
				return
			}
			if code := d.wait(t); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if text := d.stderr.String(); !strings.Contains(text, "lacks what Tank needs: extended attributes") ||
				!strings.Contains(text, `Serve the root with mode = "directory"`) {
				t.Errorf("%s", text)
			}
			if left, err := os.ReadDir(ram); err != nil || len(left) > 0 {
				t.Errorf("the refused file system has %v, %v", left, err)
			}
		})
	}
}
