package tank_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// mountRamfs mounts a file system without extended attributes at dir until the test ends.
func mountRamfs(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	must(t, unix.Mount("ramfs", dir, "ramfs", 0, "mode=700"))
	t.Cleanup(func() { unmount(t, dir) })
}

// TestWithoutXattrs pulls an image with extended attributes to roots that lie wholly or partly on a
// file system without them. The pull warns once for each layer with attributes, and the rootfs is
// that of the image without them.
func TestWithoutXattrs(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	push(t, reg, "1",
		[]Item{D("d").Xattr("user.d", "1"), F("d/a", "1").Xattr("user.a", "1"), F("b", "1").Xattr("user.b", "1")},
		[]Item{F("d/c", "2")},
		[]Item{H("l", "b").Xattr("user.l", "3"), F("e", "3").Xattr("trusted.e", "3")})
	bare := []string{`b file "1"`, "d dir", `d/a file "1"`, `d/c file "2"`, `e file "3"`, `l file "1" = b`}
	full := []string{`b file "1" user.b="1" user.l="3"`, `d dir user.d="1"`, `d/a file "1" user.a="1"`, `d/c file "2"`,
		`e file "3" trusted.e="3"`,
		`l file "1" = b user.b="1" user.l="3"`}
	for _, tc := range []struct {
		testName string
		pools    []string // these lie on a file system without attributes
		want     []string
		warnings []string // a part of each warning
	}{
		{"nowhere", nil, full, nil},
		{"the whole root", []string{"."}, bare, []string{"user.a, user.b, user.d", "trusted.e"}},
		{"the layers", []string{"layers"}, nil, []string{"user.a, user.b, user.d", "trusted.e"}},
		{"the rootfs", []string{"rootfs"}, bare, nil},
	} {
		for _, daemon := range []bool{false, true} {
			t.Run(tc.testName, func(t *testing.T) {
				r := &root{filepath.Join(t.TempDir(), "root"), false} // the mark makes it a daemon's
				must(t, os.Mkdir(r.dir, 0o700))
				if slices.Contains(tc.pools, ".") {
					mountRamfs(t, r.dir)
				}
				if daemon { // overlay would be refused there; see TestServeWithoutXattrs
					tk, err := tank.Open(r.dir, &tank.Options{Daemon: true, Directory: true})
					must(t, err)
					must(t, tk.Close())
				}
				r.with(t, func(*tank.Tank) {})
				for _, pool := range tc.pools {
					if pool != "." {
						mountRamfs(t, filepath.Join(r.dir, pool))
					}
				}
				var warnings []string
				img, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{Log: func(line string) {
					if w, ok := strings.CutPrefix(line, tank.WarningPrefix); ok {
						warnings = append(warnings, w)
					}
				}})
				must(t, err)
				if got := List(t, img.Rootfs); tc.want != nil && !slices.Equal(got, tc.want) {
					t.Errorf("rootfs:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
				}
				if len(warnings) != len(tc.warnings) {
					t.Errorf("warnings %q, want %q", warnings, tc.warnings)
				}
				for i := range min(len(warnings), len(tc.warnings)) {
					if !strings.Contains(warnings[i],
						"does not have these extended attributes, which are left out: "+tc.warnings[i]) {
						t.Errorf("warning %q, want %q", warnings[i], tc.warnings[i])
					}
				}
				r.with(t, func(tk *tank.Tank) {
					must(t, tk.Check(context.Background(), func(f tank.Fault) { t.Error(f) }))
				})
				to := filepath.Join(t.TempDir(), "ram")
				mountRamfs(t, to)
				must(t, tank.Clone(context.Background(), img.Rootfs, filepath.Join(to, "copy")))
				if got := List(t, filepath.Join(to, "copy")); !slices.Equal(got, bare) {
					t.Errorf("a copy:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(bare, "\n"))
				}
			})
		}
	}
}
