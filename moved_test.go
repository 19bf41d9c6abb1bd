package tank_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// mountExt4 mounts a new ext4 at dir until the test ends.
func mountExt4(t *testing.T, dir string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "ext4")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	run(t, "mkfs.ext4", "-q", image)
	must(t, os.MkdirAll(dir, 0o700))
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unmount(t, dir) })
}

// copies are ways in which people move a root or restore it, and what each loses.
var copies = []struct {
	name   string
	script string   // copies the directory $1 to $2, which is missing
	lost   []string // a part of what check finds, for each kind of loss; nil: it finds nothing
}{
	{"cp -a", `cp -a "$1" "$2"`, nil},
	{"tar with attributes", `mkdir "$2" && tar -C "$1" -cf - --sparse --xattrs --xattrs-include='*' . |
		tar -C "$2" -xpf - --xattrs --xattrs-include='*'`, nil},
	{"tar", `mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xpf -`, []string{"other xattrs", "another opaque mark"}},
	// rsync -a without -X, -H and -S does the same
	{"rsync -a", `cp -RP --preserve=mode,ownership,timestamps --sparse=never "$1" "$2"`,
		[]string{"other xattrs", "another opaque mark", "hard link"}},
	{"cp -r", `cp -r "$1" "$2"`, []string{
		"other xattrs", "another opaque mark", "mode 0755 instead of 4755", "owner 0:0 instead of 7:8", "time ",
	}},
	{"no owners", `cp -a "$1" "$2" && chown -hR 0:0 "$2"`, []string{"owner 0:0 instead of 7:8"}},
	{"no special files", `cp -a "$1" "$2" && find "$2" -type c -delete`, []string{"tty: missing", "fs/b: missing"}},
}

// TestMovedRoot moves a daemon's root to other file systems, in the ways that people use. The root
// opens there, Check finds exactly the entries that lost something, a refreshed pull mends them, and a
// snapshot has what the container wrote. Nothing in a root depends on inode or device numbers.
func TestMovedRoot(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	push(t, reg, "1",
		[]Item{D("d").Owner(7, 8).Mode(0o750), F("d/a", "1").Owner(7, 8).Mode(0o4755).Xattr("user.a", "1"), F("b", "2"),
			H("c", "b"), F("hole", strings.Repeat("\x00", 1<<20)), S("link", "b"), P("fifo"), C("tty", 5, 1),
			D("o"), F("o/f", "1")},
		[]Item{W(".wh.b"), W("o/.wh..wh..opq"), F("o/g", "2").At(1_000_000_000, 0)})
	ref := reg.Host + "/x:1"
	from := &root{filepath.Join(memoryDir(t), "root"), true}
	var want []string
	from.with(t, func(tk *tank.Tank) {
		img, err := tk.Pull(t.Context(), ref, nil)
		must(t, err)
		want = List(t, img.Rootfs)
		mounts, err := tk.Snapshots().For(metadata.Containerd).Prepare(t.Context(), "container", "")
		must(t, err)
		must(t, os.WriteFile(filepath.Join(mounts[0].Source, "written"), []byte("by a container"), 0o640))
	})
	for fs, mount := range map[string]func(*testing.T, string){
		"tmpfs": func(t *testing.T, dir string) { mountTmpfs(t, dir, "size=64m,mode=700") },
		"ext4":  mountExt4,
		"XFS":   mountXFS,
	} {
		t.Run(fs, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			mount(t, disk)
			for _, tc := range copies {
				t.Run(tc.name, func(t *testing.T) {
					to := &root{filepath.Join(disk, "root"), true}
					run(t, "sh", "-ec", tc.script, "copy", from.dir, to.dir)
					defer os.RemoveAll(to.dir)
					movedRoot(t, to, ref, tc.lost, want)
				})
			}
		})
	}
}

// movedRoot opens a copy of a root.
func movedRoot(t *testing.T, to *root, ref string, lost, want []string) {
	t.Helper()
	ctx := t.Context()
	to.with(t, func(tk *tank.Tank) {
		var faults []string
		must(t, tk.Check(ctx, func(f tank.Fault) { faults = append(faults, fmt.Sprint(f)) }))
		all := strings.Join(faults, "\n")
		for _, text := range lost {
			if !strings.Contains(all, text) {
				t.Errorf("check does not find %q:\n%s", text, all)
			}
		}
		if lost == nil && all != "" {
			t.Errorf("check finds in an exact copy:\n%s", all)
		}
		img, err := tk.Pull(ctx, ref, &tank.PullOptions{Refresh: true})
		must(t, err)
		if got := List(t, img.Rootfs); !slices.Equal(got, want) {
			t.Errorf("rootfs:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		must(t, tk.Check(ctx, func(f tank.Fault) { t.Errorf("after a refresh: %v", f) }))
		mounts, err := tk.Snapshots().For(metadata.Containerd).Mounts(ctx, "container")
		must(t, err)
		if text, err := os.ReadFile(filepath.Join(mounts[0].Source, "written")); string(text) != "by a container" {
			t.Errorf("the container's file: %q, %v", text, err)
		}
		must(t, tk.Snapshots().For(metadata.Containerd).Remove(ctx, "container"))
	})
}
