package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Require checks what these tests need. If something is missing they skip with the reason; with
// CI=true they fail.
func Require(t testing.TB) {
	t.Helper()
	if err := requirements(); err != nil {
		skipOrFail(t, err.Error())
	}
}

// RequireProgram is requireProgram for the packages below.
func RequireProgram(t testing.TB, name string) {
	t.Helper()
	requireProgram(t, name)
}

// requireProgram is Require for one more program in the PATH.
func requireProgram(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		skipOrFail(t, "needs "+name+" in PATH")
	}
}

func skipOrFail(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("cannot run here, and CI=true: %s", reason)
	}
	t.Skip(reason)
}

var requirements = sync.OnceValue(func() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: containerd and runc run as root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return errors.New("needs runc in PATH (Debian: apt-get install runc)")
	}
	dir, err := os.MkdirTemp("/tmp", "tk")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/l,upperdir=%[1]s/u,workdir=%[1]s/w", dir)
	if err := unix.Mount("overlay", filepath.Join(dir, "m"), "overlay", 0, options); err != nil {
		return fmt.Errorf("needs the right to mount overlay on /tmp: %w", err)
	}
	return unix.Unmount(filepath.Join(dir, "m"), 0)
})

// sharedImages returns a directory of real images: $TANK_SHARED_IMAGES, or else a folder beside the
// repository. A test that needs it skips if it does not exist, and fails if CI=true and
// TANK_SHARED_IMAGES are set.
func sharedImages(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("TANK_SHARED_IMAGES")
	set := dir != ""
	if !set {
		dir = "../../shared/images"
	}
	if _, err := os.Stat(filepath.Join(dir, "oci", "index.json")); err != nil {
		if set && os.Getenv("CI") == "true" {
			t.Fatalf("TANK_SHARED_IMAGES=%s: %v", dir, err)
		}
		t.Skipf("shared images are not at %s", dir)
	}
	return dir
}
