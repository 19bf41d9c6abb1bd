package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
)

// TestReadOnlyCommands runs commands on a root that is mounted read-only, so that they can not make a socket.
func TestReadOnlyCommands(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount")
		}
		t.Skip("needs root, to mount")
	}
	root, at := filepath.Join(t.TempDir(), "root"), t.TempDir()
	tk, err := tank.Open(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := tk.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(root, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		want int
		args []string
	}{
		{exitOK, []string{"images"}},
		{exitOK, []string{"check"}},
		{exitOK, []string{"holders"}},
		{exitNotFound, []string{"inspect", "none:1"}},
		{exitNotFound, []string{"pull", "--offline", "none:1"}},
		{exitOther, []string{"gc"}},
		{exitOther, []string{"rm", "none:1"}},
		{exitOther, []string{"pull", "127.0.0.1:1/none:1"}},
		{exitOther, []string{"check", "--rebuild"}},
	} {
		if got := run(append(row.args, "--root", at)); got != row.want {
			t.Errorf("%v: exit %d, want %d", row.args, got, row.want)
		}
	}
}
