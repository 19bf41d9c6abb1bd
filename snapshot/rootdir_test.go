package snapshot_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestRootDirectory checks how an image's entry for the root directory is applied. A rootfs gets its attributes. A
// snapshot gets only its modification time, because the rest belongs to the snapshotter, as with containerd's
// overlayfs. The attributes that a container gave its root directory are kept.
func TestRootDirectory(t *testing.T) {
	requireMounts(t)
	root := D("./").Mode(0o700).Owner(3, 4).At(7, 0).Xattr("user.x", "1")
	for _, row := range []struct {
		testName string
		layers   [][]Item
		rootfs   []string // the line of the root directory
		snapshot []string
	}{
		{"in the only layer", [][]Item{{root, F("a", "1")}}, []string{`. dir 0700 3:4 @7 user.x="1"`},
			[]string{". dir @7"}},
		{"in the lower layer", [][]Item{{root}, {F("a", "1")}}, []string{`. dir 0700 3:4 @7 user.x="1"`},
			[]string{". dir @7"}},
		{"in the upper layer", [][]Item{{F("a", "0")}, {root, F("a", "1")}}, []string{`. dir 0700 3:4 @7 user.x="1"`},
			[]string{". dir @7"}},
		{"alone in the upper layer", [][]Item{{F("a", "1")}, {root}}, []string{`. dir 0700 3:4 @7 user.x="1"`},
			[]string{". dir @7"}},
		{"an entry with default attributes above another",
			[][]Item{{root, F("a", "1")}, {D("./").At(9, 0)}}, []string{". dir @9"},
			[]string{". dir @9"}},
		{"opaque", [][]Item{{F("a", "0")}, {root, W(".wh..wh..opq"), F("a", "1")}},
			[]string{`. dir 0700 3:4 @7 user.x="1"`},
			[]string{". dir @7"}},
		{"in no layer", [][]Item{{F("a", "1")}}, nil, nil},
	} {
		t.Run(row.testName, func(t *testing.T) {
			for _, directory := range []bool{false, true} {
				w := openWith(t, t.TempDir(), memory{},
					&snapshot.Options{SyncDelay: -1, Unpack: rights(), Directory: directory})
				var layers []layer.Pair
				for _, items := range row.layers {
					layers = append(layers, w.blobs.add(t, Tar(t, items...)))
				}
				want := slices.Concat(row.snapshot, []string{`a file "1"`})
				sn := w.For(metadata.Containerd)
				top, err := extract(ctx, sn, w, layers, false, "ns")
				must(t, err)
				view, err := sn.View(ctx, "view", top)
				must(t, err)
				container, err := sn.Prepare(ctx, "container", top)
				must(t, err)
				for name, ms := range map[string][]mount.Mount{"view": view, "container": container} {
					if got := show(t, ms); !slices.Equal(got, want) {
						t.Errorf("directory mode %v: %s:\n%q, want\n%q", directory, name, got, want)
					}
				}
				dir := t.TempDir()
				must(t, mount.All(container, dir))
				must(t, os.Chmod(dir, 0o711))
				must(t, os.Chtimes(dir, time.Unix(7, 0), time.Unix(5, 0)))
				must(t, mount.UnmountAll(dir, 0))
				must(t, sn.Commit(ctx, "committed", "container"))
				child, err := sn.View(ctx, "child", "committed")
				must(t, err)
				if got := show(t, child); len(got) == 0 || got[0] != ". dir 0711 @5" {
					t.Errorf("directory mode %v: above a committed container: %q", directory, got)
				}
				rootfs, err := assembled(t, w, layers, false)
				must(t, err)
				if want := slices.Concat(row.rootfs, want[len(row.snapshot):]); !inNamespace() &&
					!slices.Equal(rootfs, want) {
					t.Errorf("directory mode %v: rootfs:\n%q, want\n%q", directory, rootfs, want)
				}
			}
		})
	}
}
