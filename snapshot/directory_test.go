package snapshot_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// openDirectory opens a root in directory mode.
func openDirectory(t *testing.T, root string, blobs memory) *world {
	t.Helper()
	return openWith(t, root, blobs, &snapshot.Options{SyncDelay: -1, Unpack: rights(), Directory: true})
}

// inMode closes the root and opens it in directory mode, or as overlay.
func (w *world) inMode(t *testing.T, directory bool) *world {
	t.Helper()
	must(t, w.close())
	return openWith(t, w.root, w.blobs, &snapshot.Options{SyncDelay: -1, Unpack: rights(), Directory: directory})
}

// prepared unpacks the layers as containerd does, and lists what a container above them gets in directory mode. A view has
// to show the same.
func prepared(t *testing.T, w *world, layers []snapshot.Layer, name string) ([]string, error) {
	t.Helper()
	sn := w.For(metadata.Holder(name))
	defer func() { must(t, release(w, metadata.Holder(name))) }()
	top, err := extract(ctx, sn, w, layers, false, name)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Prepare(ctx, "active "+name, top)
	if err != nil {
		return nil, err
	}
	lines := List(t, bound(t, mounts, "rw"))
	if mounts, err = sn.View(ctx, "view "+name, top); err != nil {
		return nil, err
	}
	if view := List(t, bound(t, mounts, "ro")); !slices.Equal(view, lines) {
		return nil, fmt.Errorf("a view shows:\n%s\nand not:\n%s", strings.Join(view, "\n"), strings.Join(lines, "\n"))
	}
	return lines, nil
}

// bound is the source of what is one bind mount.
func bound(t *testing.T, mounts []mount.Mount, mode string) string {
	t.Helper()
	if len(mounts) != 1 || mounts[0].Type != "bind" || !slices.Equal(mounts[0].Options, []string{mode, "rbind"}) {
		t.Fatalf("mounts %v, want one bind, %s", mounts, mode)
	}
	return mounts[0].Source
}

// sample is layers with everything that a copy has to keep, and what it shows.
func (w *world) sample(t *testing.T) (layers []snapshot.Layer, want []string) {
	t.Helper()
	for _, items := range [][]Item{
		{D("./").Mode(0o711).At(7, 0), D("d").Mode(0o750).Owner(3, 4), F("d/a", "1"), F("d/gone", "1"), F("f", "content").Owner(7, 8), S("s", "f"), P("p")},
		{F("d/b", "2"), W("d/.wh.gone"), H("g", "f")},
		{F("e/x", "3").Xattr("user.k", "v").Mode(0o4755)},
	} {
		layers = append(layers, w.blobs.add(t, Tar(t, items...)))
	}
	return layers, []string{". dir 0711 @7", "d dir 0750 3:4", `d/a file "1"`, `d/b file "2"`, "e dir @0", `e/x file 4755 "3" user.k="v"`,
		`f file "content"`, `g file "content" = f`, "p fifo", "s symlink -> f"}
}

// TestDirectoryForms shows which snapshots are a directory of their own, and which have overlay's form for the layer that is
// applied to them.
func TestDirectoryForms(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	layers, _ := w.sample(t)
	one, err := extract(ctx, sn, w, layers[:1], false, "one")
	must(t, err)
	three, err := extract(ctx, sn, w, layers, false, "three")
	must(t, err)
	ref := map[string]string{snapshots.LabelSnapshotRef: "target"}
	chain := map[string]string{"containerd.io/snapshot/parent-chain-id": "sha256:0"}
	for _, row := range []struct {
		testName string
		view     bool
		key      string
		parent   string
		labels   map[string]string
		want     string // type, upper or not, and whose directory
	}{
		{"a container", false, "ns/1/c", three, nil, "bind rw snapshots"},
		{"a container on nothing", false, "c", "", nil, "bind rw snapshots"},
		{"a view", true, "v", three, nil, "bind ro snapshots"},
		{"a view of one directory", true, "v1", one, nil, "bind ro layers"},
		{"a view of nothing", true, "v0", "", nil, "bind ro snapshots"},
		{"an extraction, by its key", false, "ns/2/extract-1 sha256:0", three, nil, "overlay upper"},
		{"an extraction, by its label", false, "x", three, ref, "overlay upper"},
		{"an extraction on a parent that comes later", false, "y", "", chain, "overlay upper"},
	} {
		t.Run(row.testName, func(t *testing.T) {
			do := sn.Prepare
			if row.view {
				do = sn.View
			}
			mounts, err := do(ctx, row.key, row.parent, snapshots.WithLabels(row.labels))
			must(t, err)
			again, err := sn.Mounts(ctx, row.key)
			must(t, err)
			for _, ms := range [][]mount.Mount{mounts, again} {
				if got := form(w, ms); got != row.want {
					t.Errorf("%s, want %s: %v", got, row.want, ms)
				}
			}
		})
	}
}

func form(w *world, ms []mount.Mount) string {
	if len(ms) != 1 {
		return fmt.Sprint(len(ms), " mounts")
	}
	if ms[0].Type == "overlay" {
		if slices.ContainsFunc(ms[0].Options, func(o string) bool { return strings.HasPrefix(o, "upperdir="+w.root+"/snapshots/") }) {
			return "overlay upper"
		}
		return "overlay"
	}
	rel, _ := filepath.Rel(w.root, ms[0].Source)
	whose, _, _ := strings.Cut(rel, "/")
	return strings.Join([]string{ms[0].Type, ms[0].Options[0], whose}, " ")
}

// TestDirectoryCopy shows that a copy is one's own: what is written to it shows nowhere else, and no inode of it is a layer's (I3).
func TestDirectoryCopy(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	layers, want := w.sample(t)
	top, err := extract(ctx, sn, w, layers, false, "ns")
	must(t, err)
	mounts, err := sn.Prepare(ctx, "a", top)
	must(t, err)
	a := bound(t, mounts, "rw")
	inodes := map[uint64]string{}
	eachInode(t, filepath.Join(w.root, "layers"), func(path string, ino uint64) { inodes[ino] = path })
	eachInode(t, a, func(path string, ino uint64) {
		if other := inodes[ino]; other != "" {
			t.Errorf("%s is %s", path, other)
		}
	})
	must(t, os.WriteFile(filepath.Join(a, "f"), []byte("mine"), 0o644))
	must(t, os.RemoveAll(filepath.Join(a, "d")))
	mounts, err = sn.Prepare(ctx, "b", top)
	must(t, err)
	if got := List(t, bound(t, mounts, "rw")); !slices.Equal(got, want) {
		t.Errorf("another container sees:\n%s", strings.Join(got, "\n"))
	}
}

func eachInode(t *testing.T, dir string, fn func(path string, ino uint64)) {
	t.Helper()
	must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			fn(path, info.Sys().(*syscall.Stat_t).Ino)
		}
		return err
	}))
}

// TestDirectoryUsage shows that a copy counts with all that is in it, by now while it is written to, by the record once it is
// committed.
func TestDirectoryUsage(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	layers := []snapshot.Layer{w.blobs.add(t, Tar(t, F("a", strings.Repeat("x", 1<<20)))), w.blobs.add(t, Tar(t, F("b", "1")))}
	top, err := extract(ctx, sn, w, layers, false, "ns")
	must(t, err)
	mounts, err := sn.Prepare(ctx, "key", top)
	must(t, err)
	_, err = sn.View(ctx, "view", top)
	must(t, err)
	usage := func(key string) int64 {
		u, err := sn.Usage(ctx, key)
		must(t, err)
		return u.Size
	}
	if n := usage("view"); n < 1<<20 || n > 1<<20+1<<16 {
		t.Errorf("a view of a MiB: %d", n)
	}
	must(t, os.WriteFile(filepath.Join(mounts[0].Source, "more"), make([]byte, 2<<20), 0o644))
	before := usage("key")
	if before < 3<<20 || before > 3<<20+1<<16 {
		t.Errorf("three MiB: %d", before)
	}
	must(t, sn.Commit(ctx, "name", "key"))
	must(t, os.Remove(filepath.Join(mounts[0].Source, "more")))
	if n := usage("name"); n != before {
		t.Errorf("committed: %d, was %d", n, before)
	}
}

// TestDirectoryApply shows that a layer is not applied to a copy as if that were empty: another differ writes into it.
func TestDirectoryApply(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	l := w.blobs.add(t, Tar(t, F("a", "1")))
	for _, parent := range []string{"", "ns/" + l.DiffID.String()} {
		mounts, err := sn.Prepare(ctx, "key on "+parent, parent)
		must(t, err)
		if _, err := w.Apply(ctx, l.Blob, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("on %q: %v", parent, err)
		}
		_, err = extract(ctx, sn, w, []snapshot.Layer{l}, false, "ns")
		if parent == "" {
			must(t, err)
		}
	}
}
