package snapshot_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWorld runs the rows of TestStacks, TestBreakouts and TestHostile in a world: an overlay over the whole file
// system. A change outside the directory of the tests appears in the overlay's upper directory. The world contains
// the paths that the hostile rows attack.
func TestWorld(t *testing.T) {
	requireMounts(t)
	if testing.Short() {
		t.Skip("runs the rows of other tests once more")
	}
	cmd := again(t, worldChild, t.TempDir(), "^(TestStacks|TestBreakouts|TestHostile)$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		requireChildren(t, err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// theWorld is the world of the child process, seen through the upper directory of its overlay.
type theWorld struct{ upper *os.Root }

// enterWorld creates a world below dir and makes it the root directory of the process. The tests work in /stage.
func enterWorld(dir string) (*theWorld, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("world", dir, "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	upper, work, root := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	lower, options := "/", "upperdir="+upper+",workdir="+work
	if inNamespace() { // it may not use what lies under the mounts that it inherited
		lower, options = filepath.Join(dir, "lower"), "userxattr,"+options
		if err := errors.Join(os.MkdirAll(filepath.Join(lower, "etc"), 0o755),
			os.Mkdir(filepath.Join(lower, "tmp"), 0o777)); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+lower+","+options); err != nil {
		return nil, fmt.Errorf("overlay over /: %w", err)
	}
	if err := layCanary(root); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		source, kind, at string
		flags            uintptr
	}{{"stage", "tmpfs", "stage", 0}, {"/proc", "", "proc", unix.MS_BIND | unix.MS_REC}} {
		at := filepath.Join(root, m.at)
		if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount(m.source, at, m.kind, m.flags, "")); err != nil {
			return nil, fmt.Errorf("%s: %w", m.at, err)
		}
	}
	w, err := os.OpenRoot(upper)
	if err != nil {
		return nil, err
	}
	return &theWorld{w}, errors.Join(unix.Chroot(root), os.Chdir("/stage"), os.Setenv("TMPDIR", "/stage"))
}

// layCanary creates the files that hostile layers attack.
func layCanary(root string) error {
	canary := filepath.Join(root, "canary")
	err := os.MkdirAll(filepath.Join(canary, "etc"), 0o755)
	for name, mode := range map[string]os.FileMode{"secret": 0o400, "private": 0o600, "su": 0o755 | os.ModeSetuid,
		"victim": 0o644, "etc/passwd": 0o644} {
		path := filepath.Join(canary, name)
		err = errors.Join(err, os.WriteFile(path, []byte(name), 0o600), os.Chmod(path, mode))
	}
	return err
}

// judge runs the tests and compares the files outside /stage before and after them.
func (w *theWorld) judge(m interface{ Run() int }) error {
	before, err := w.list()
	if err != nil {
		return err
	}
	code := m.Run()
	after, err := w.list()
	if err != nil {
		return err
	}
	if !maps.Equal(before, after) {
		var lines []string
		for _, p := range slices.Sorted(maps.Keys(after)) {
			if before[p] != after[p] {
				lines = append(lines, fmt.Sprintf("%s: %s, was %s", p, after[p], before[p]))
			}
		}
		for p := range before {
			if after[p] == "" {
				lines = append(lines, p+": removed")
			}
		}
		return fmt.Errorf("changed outside of /stage:\n%s", strings.Join(lines, "\n"))
	}
	if code != 0 {
		return fmt.Errorf("exit code %d", code)
	}
	return nil
}

// list describes every file in the upper directory, by path.
func (w *theWorld) list() (map[string]string, error) {
	list := map[string]string{}
	err := fs.WalkDir(w.upper.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := w.upper.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d %v %d", info.Mode(), st.Uid, st.Gid, info.ModTime(), st.Nlink)
		if e.Type().IsRegular() {
			data, err := w.upper.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		list[path] = line
		return nil
	})
	return list, err
}
