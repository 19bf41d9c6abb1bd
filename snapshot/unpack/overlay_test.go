package unpack_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestOverlay mounts the extracted layers with overlay and checks that the kernel interprets the whiteouts and opaque
// directories as intended. No row needs a fix-up.
func TestOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root, to mount overlay")
	}
	lower := items(u.D("d"), u.F("d/old", "o"), u.F("a", "1"), u.D("e"), u.D("e/s"), u.F("e/s/old", "o"))
	base := []string{`a file "1"`, `d dir`, `d/old file "o"`, `e dir`, `e/s dir`, `e/s/old file "o"`}
	without := func(drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(base), func(l string) bool {
			return slices.ContainsFunc(drop, func(d string) bool {
				return l == d || strings.HasPrefix(l, d+" ") || strings.HasPrefix(l, d+"/")
			})
		})
	}
	for _, tc := range []struct {
		id     string
		layers [][]u.Item
		want   []string
	}{
		{"nothing", nil, base},
		{"E1", [][]u.Item{items(u.W(".wh.a"))}, without("a")},
		{"E2", [][]u.Item{items(u.W(".wh.d"))}, without("d")},
		{"E3", [][]u.Item{items(u.W(".wh.a"), u.F("a", "2"))}, append([]string{`a file "2"`}, without("a")...)},
		{"E5", [][]u.Item{items(u.W(".wh.d"), u.D("d"), u.F("d/new", "n"))},
			[]string{`a file "1"`, `d dir`, `d/new file "n"`, `e dir`, `e/s dir`, `e/s/old file "o"`}},
		{"E7", [][]u.Item{items(u.D("e"), u.W("e/.wh..wh..opq"), u.F("e/n", "n"))},
			append(without("e"), `e dir`, `e/n file "n"`)},
		{"E10", [][]u.Item{items(u.D("e"), u.W("e/.wh..wh..opq"), u.W("e/.wh.s"), u.D("e/x"), u.W("e/x/.wh.y"))},
			append(without("e"), `e dir`, `e/x dir`)},
		{"E17", [][]u.Item{items(u.W(".wh.a")), items(u.F("a", "3")), items(u.W(".wh.a"))}, without("a")},
		{"no visible whiteouts in a directory without a lower directory",
			[][]u.Item{items(u.D("n"), u.W("n/.wh.x"), u.F("n/y", "1"))},
			append(slices.Clone(base), `n dir`, `n/y file "1"`)},
	} {
		t.Run(tc.id, func(t *testing.T) {
			tmp := publicTempDir(t)
			var dirs []string
			for i, layer := range append([][]u.Item{lower}, tc.layers...) {
				dir := filepath.Join(tmp, string(rune('a'+i)))
				must(t, os.Mkdir(dir, 0o700))
				extractTo(t, dir, u.Tar(t, layer...))
				dirs = append([]string{dir}, dirs...)
			}
			if len(dirs) == 1 {
				dirs = append(dirs, t.TempDir())
			}
			mnt := filepath.Join(tmp, "mnt")
			must(t, os.Mkdir(mnt, 0o755))
			options := "lowerdir=" + strings.Join(dirs, ":")
			if inNamespace() {
				options = "userxattr," + options
			}
			if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, options); err != nil {
				skipOrFail(t, "mount overlay: "+err.Error())
			}
			defer unix.Unmount(mnt, unix.MNT_DETACH)
			got := slices.DeleteFunc(u.List(t, mnt), func(l string) bool { return strings.HasPrefix(l, ". ") })
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("merged tree:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// extractTo extracts a tar into the directory at path.
func extractTo(t testing.TB, path string, raw []byte) *unpack.Result {
	t.Helper()
	dir, err := os.Open(path)
	must(t, err)
	defer dir.Close()
	res, err := unpack.Extract(context.Background(), dir, bytes.NewReader(raw), userOptions())
	must(t, err)
	return res
}
