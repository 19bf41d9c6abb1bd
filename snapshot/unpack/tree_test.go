package unpack_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestRemoveAll removes a tree that is too deep for a path. It contains symlinks, which must not be followed, and
// fifos, which must not be opened.
func TestRemoveAll(t *testing.T) {
	base := t.TempDir()
	keep := filepath.Join(base, "keep")
	must(t, os.Mkdir(keep, 0o755))
	must(t, os.WriteFile(filepath.Join(keep, "f"), []byte("1"), 0o644))
	top, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	fd := top
	const depth = 3000
	for i := range depth {
		must(t, unix.Mkdirat(fd, "dddd", 0o755))
		next, err := unix.Openat(fd, "dddd", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Symlinkat(keep, next, "link"))
		must(t, unix.Mknodat(next, "fifo", unix.S_IFIFO|0o600, 0))
		if i%100 == 0 {
			must(t, unix.Mkdirat(next, "closed", 0o700))
			must(t, unix.Mkdirat(next, "closed/sub", 0o700))
			must(t, unix.Fchmodat(next, "closed", 0, 0))
		}
		if fd != top {
			unix.Close(fd)
		}
		fd = next
	}
	unix.Close(fd)
	unix.Close(top)
	must(t, beneath.RemoveAll(context.Background(), openDir(t, base), "dddd", nil))
	must(t, beneath.RemoveAll(context.Background(), openDir(t, base), "dddd", nil))
	names, err := os.ReadDir(base)
	must(t, err)
	if len(names) != 1 || len(u.List(t, keep)) != 2 {
		t.Errorf("left: %v; in keep: %v", names, u.List(t, keep))
	}
	must(t, os.Symlink(keep, filepath.Join(base, "l")))
	must(t, beneath.RemoveAll(context.Background(), openDir(t, base), "l", nil))
	if len(u.List(t, keep)) != 2 {
		t.Error("the symlink was followed")
	}
}

// TestSetAttrs applies the attributes of an extracted layer to another tree, as the assembly of a rootfs does.
func TestSetAttrs(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	layer := items(
		u.D("d").Mode(0o1755).At(5, 6).Xattr("user.x", "1"),
		u.F("d/f", "x").Mode(0o440).At(7, 8).Xattr("user.y", "2"),
		u.S("s", "t").At(9, 0),
		u.P("p").Mode(0o600),
		u.D("closed").Mode(0o111),
	)
	if os.Geteuid() == 0 {
		layer = append(layer, u.F("cap", "").Owner(3, 4).Xattr("security.capability", capability),
			u.S("t", "u").Owner(5, 6).Xattr("trusted.z", "3"))
	}
	res := extractTo(t, from, u.Tar(t, layer...))
	dir := openDir(t, to)
	for i := range res.Entries() {
		e := &res.Entries()[i]
		path := filepath.Join(to, e.Path)
		switch e.Type {
		case entry.Dir:
			if e.Path != "." {
				must(t, os.Mkdir(path, 0o700))
			}
		case entry.File:
			must(t, os.WriteFile(path, bytes.Repeat([]byte("x"), int(e.Size)), 0o600))
			_ = unix.Lsetxattr(path, "user.stray", []byte("1"), 0)
		case entry.Symlink:
			must(t, os.Symlink(e.Target, path))
		case entry.Fifo:
			must(t, unix.Mkfifo(path, 0o644))
		}
	}
	for i := len(res.Entries()) - 1; i >= 0; i-- {
		e := &res.Entries()[i]
		if e.Path == "." {
			must(t, beneath.SetAttrsOf(dir, e))
			continue
		}
		parent := openDir(t, filepath.Join(to, filepath.Dir(e.Path)))
		must(t, beneath.SetAttrs(parent, filepath.Base(e.Path), e))
	}
	listed, err := tree.ReadDir(dir)
	must(t, err)
	if d := difference(res.Entries(), listed); d != "" {
		t.Error(d)
	}
}

func TestOpaqueAndWhiteout(t *testing.T) {
	base := t.TempDir()
	user := os.Geteuid() != 0 || inNamespace()
	extractTo(t, base, u.Tar(t, u.D("o"), u.W("o/.wh..wh..opq"), u.D("n"), u.W("n/.wh.w"), u.F("f", "")))
	for path, want := range map[string]bool{"o": true, "n": false, ".": false} {
		if got, err := beneath.IsOpaque(openDir(t, filepath.Join(base, path))); err != nil || got != want {
			t.Errorf("%s: opaque %v, %v", path, got, err)
		}
	}
	for path, want := range map[string]bool{"n/w": true, "f": false, "o": false} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(base, path), &st))
		if beneath.IsWhiteout(&st) != want {
			t.Errorf("%s: whiteout %v", path, !want)
		}
	}
	n := openDir(t, filepath.Join(base, "n"))
	if plain, err := beneath.Mark(n, beneath.Marks{Whiteouts: true, Opaque: true}, user); err != nil || plain {
		t.Errorf("mark: plain %v, %v", plain, err)
	}
	if got, err := beneath.IsOpaque(n); err != nil || !got {
		t.Errorf("opaque after Mark: %v, %v", got, err)
	}
}

// TestReadTree checks that tree.ReadDir also handles trees that Extract does not make.
func TestReadTree(t *testing.T) {
	base := t.TempDir()
	must(t, os.WriteFile(filepath.Join(base, "b"), []byte("1"), 0o644))
	must(t, os.Link(filepath.Join(base, "b"), filepath.Join(t.TempDir(), "elsewhere")))
	deep := base
	for i := range 30 {
		deep = filepath.Join(deep, fmt.Sprint(i))
		must(t, os.Mkdir(deep, 0o755))
	}
	must(t, os.Symlink(strings.Repeat("long/", 200), filepath.Join(deep, "l")))
	listed, err := tree.ReadDir(openDir(t, base))
	must(t, err)
	if len(listed) != 33 || listed[0].Path != "." || listed[len(listed)-1].Path != "b" ||
		listed[len(listed)-1].Inode != "" {
		t.Errorf("%d entries", len(listed))
	}
	again, err := tree.ReadDir(openDir(t, base))
	must(t, err)
	if !reflect.DeepEqual(listed, again) {
		t.Error("a second listing differs from the first")
	}
	must(t, unix.Mknod(filepath.Join(base, "sock"), unix.S_IFSOCK|0o600, 0))
	if _, err := tree.ReadDir(openDir(t, base)); err == nil || !strings.Contains(err.Error(), "sock") {
		t.Errorf("error for a socket: %v", err)
	}
}
