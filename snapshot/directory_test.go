package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// openDirectory opens a root in directory mode.
func openDirectory(t *testing.T, root string, blobs memory) *world {
	t.Helper()
	return openWith(t, root, blobs, &snapshot.Options{SyncDelay: -1, Unpack: rights(), Directory: true})
}

// inMode closes the root and opens it again, in directory mode or in overlay mode.
func (w *world) inMode(t *testing.T, directory bool) *world {
	t.Helper()
	must(t, w.close())
	return openWith(t, w.root, w.blobs, &snapshot.Options{SyncDelay: -1, Unpack: rights(), Directory: directory})
}

// prepared unpacks the layers as containerd does and lists the tree of a container above them in
// directory mode. It fails if a view shows another tree.
func prepared(t *testing.T, w *world, layers []layer.Pair, name string) ([]string, error) {
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

// bound returns the source of the only mount, which must be a bind mount.
func bound(t *testing.T, mounts []mount.Mount, mode string) string {
	t.Helper()
	if len(mounts) != 1 || mounts[0].Type != "bind" || !slices.Equal(mounts[0].Options, []string{mode, "rbind"}) {
		t.Fatalf("mounts %v, want one bind, %s", mounts, mode)
	}
	return mounts[0].Source
}

// sample adds layers with everything that a copy must keep. want lists the merged tree.
func (w *world) sample(t *testing.T) (layers []layer.Pair, want []string) {
	t.Helper()
	for _, items := range [][]Item{
		{D("./").At(7, 0), D("d").Mode(0o750).Owner(3, 4), F("d/a", "1"), F("d/gone", "1"),
			F("f", "content").Owner(7, 8),
			S("s", "f"), P("p")},
		{F("d/b", "2"), W("d/.wh.gone"), H("g", "f")},
		{F("e/x", "3").Xattr("user.k", "v").Mode(0o4755)},
	} {
		layers = append(layers, w.blobs.add(t, Tar(t, items...)))
	}
	return layers, []string{". dir @7", "d dir 0750 3:4", `d/a file "1"`, `d/b file "2"`, "e dir @0",
		`e/x file 4755 "3" user.k="v"`,
		`f file "content"`, `g file "content" = f`, "p fifo", "s symlink -> f"}
}

// TestDirectoryForms shows which snapshots are directories of their own, and which are overlay
// mounts because containerd applies a layer to them.
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
		want     string // mount type, options and pool, as form returns them
	}{
		{"a container", false, "ns/1/c", three, nil, "bind rw snapshots"},
		{"a container whose name begins like that of an extraction", false, "ns/1/extract-c", three, nil,
			"bind rw snapshots"},
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
					t.Errorf("got %s, want %s: %v", got, row.want, ms)
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
		if slices.ContainsFunc(ms[0].Options,
			func(o string) bool { return strings.HasPrefix(o, "upperdir="+w.root+"/snapshots/") }) {
			return "overlay upper"
		}
		return "overlay"
	}
	rel, _ := filepath.Rel(w.root, ms[0].Source)
	whose, _, _ := strings.Cut(rel, "/")
	return strings.Join([]string{ms[0].Type, ms[0].Options[0], whose}, " ")
}

// TestDirectoryCopy shows that copies are independent: a write to one copy is not visible
// elsewhere, and no copy shares an inode with a layer (I3).
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
			t.Errorf("%s shares its inode with %s", path, other)
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

// TestDirectorySockets shows that a socket that a build step leaves behind, such as that of
// gpg-agent, does not make the next step fail.
func TestDirectorySockets(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(holder)
	mounts, err := sn.Prepare(ctx, "a", "")
	must(t, err)
	socket := filepath.Join(bound(t, mounts, "rw"), "S.gpg-agent")
	must(t, unix.Mknod(socket, unix.S_IFSOCK|0o600, 0))
	must(t, os.Chmod(socket, 0o640))
	must(t, os.Chtimes(socket, time.Unix(7, 0), time.Unix(7, 0)))
	must(t, os.Link(socket, socket+".extra"))
	must(t, sn.Commit(ctx, "b", "a"))
	mounts, err = sn.Prepare(ctx, "c", "b")
	must(t, err)
	for _, name := range []string{"S.gpg-agent", "S.gpg-agent.extra"} {
		fi, err := os.Lstat(filepath.Join(bound(t, mounts, "rw"), name))
		must(t, err)
		if st := fi.Sys().(*syscall.Stat_t); fi.Mode() != os.ModeSocket|0o640 || fi.ModTime().Unix() != 7 ||
			st.Nlink != 2 {
			t.Errorf("%s: %v, %v, %d links", name, fi.Mode(), fi.ModTime(), st.Nlink)
		}
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

// TestDirectoryUsage shows that a copy counts with its whole content: as measured now while it is
// active, and as recorded once it is committed.
func TestDirectoryUsage(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	layers := []layer.Pair{w.blobs.add(t, Tar(t, F("a", strings.Repeat("x", 1<<20)))),
		w.blobs.add(t, Tar(t, F("b", "1")))}
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
		t.Errorf("usage of a view of 1 MiB: %d bytes", n)
	}
	must(t, os.WriteFile(filepath.Join(mounts[0].Source, "more"), make([]byte, 2<<20), 0o644))
	before := usage("key")
	if before < 3<<20 || before > 3<<20+1<<16 {
		t.Errorf("usage of 3 MiB: %d bytes", before)
	}
	must(t, sn.Commit(ctx, "name", "key"))
	must(t, os.Remove(filepath.Join(mounts[0].Source, "more")))
	if n := usage("name"); n != before {
		t.Errorf("usage after the commit: %d bytes, before %d", n, before)
	}
}

// TestDirectoryApply shows that Tank does not attach a layer to a copy as if the copy were empty,
// and that containerd then falls back to its walking differ, which applies the layer.
func TestDirectoryApply(t *testing.T) {
	requireMounts(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	layers, want := w.sample(t)
	for name, count := range map[string]int{"nothing": 0, "two layers": 2} {
		t.Run(name, func(t *testing.T) {
			parent := ""
			if count > 0 {
				var err error
				parent, err = extract(ctx, sn, w, layers[:count], false, "ns")
				must(t, err)
			}
			mounts, err := sn.Prepare(ctx, name, parent)
			must(t, err)
			for _, l := range layers[count:] {
				if _, err := w.Apply(ctx, l.Blob, mounts); !errdefs.IsNotImplemented(err) {
					t.Fatal(err)
				}
			}
			w.walking(t, mounts, layers[2])
			lines := List(t, bound(t, mounts, "rw"))
			if i := slices.IndexFunc(lines,
				func(l string) bool { return strings.HasPrefix(l, "e/x file 4755") }); i < 0 || count > 0 &&
				len(lines) != len(want) {
				t.Errorf("got %q", lines)
			}
		})
	}
}

// TestDirectoryWalking applies layers to extractions with containerd's walking differ, which mounts
// no overlay. The result is the same as with Apply, whiteouts included.
func TestDirectoryWalking(t *testing.T) {
	requireMounts(t)
	if inNamespace() {
		t.Skip("in a user namespace the walking differ mounts overlay")
	}
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(holder)
	layers := []layer.Pair{
		w.blobs.add(t, Tar(t, D("d"), F("d/a", "1"), F("d/gone", "1"), D("o"), F("o/gone", "1"), F("f", "1"))),
		w.blobs.add(t,
			Tar(t, D("d"), F("d/b", "2"), W("d/.wh.gone"), D("o"), W("o/.wh..wh..opq"), F("o/n", "2"), W(".wh.f"))),
	}
	want := []string{"d dir", `d/a file "1"`, `d/b file "2"`, "e dir @0", `e/x file "3"`, "o dir", `o/n file "2"`}
	parent := ""
	for i, l := range layers {
		key := fmt.Sprintf("extract-%d chain", i)
		mounts, err := sn.Prepare(ctx, key, parent)
		must(t, err)
		w.walking(t, mounts, l)
		parent = fmt.Sprint("committed ", i)
		must(t, sn.Commit(ctx, parent, key))
	}
	mounts, err := sn.Prepare(ctx, "key", w.layerOn(t, "by Apply", parent, F("e/x", "3")))
	must(t, err)
	rootless := func(lines []string) []string { // without the root: the differ does not reset its modification time
		return slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, ". ") })
	}
	if got := rootless(List(t, bound(t, mounts, "rw"))); !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// walking applies a layer with containerd's own differ.
func (w *world) walking(t *testing.T, mounts []mount.Mount, l layer.Pair) {
	t.Helper()
	got, err := apply.NewFileSystemApplier(provider{w.blobs}).Apply(ctx, l.Blob, mounts)
	must(t, err)
	if got.Digest != l.DiffID {
		t.Errorf("diff ID %s, want %s", got.Digest, l.DiffID)
	}
}

// provider serves blobs as containerd's content store does.
type provider struct{ memory }

func (p provider) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	return readerAt{bytes.NewReader(p.memory[desc.Digest])}, nil
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

// TestOtherMode opens a root in one mode and then in the other. Full copies become the bottom of
// overlay stacks, trees that overlay wrote are merged into copies, and active snapshots do not
// change.
func TestOtherMode(t *testing.T) {
	requireMounts(t)
	w := openDirectory(t, t.TempDir(), memory{})
	layers, want := w.sample(t)
	top, err := extract(ctx, w.For(holder), w, layers, false, "ns")
	must(t, err)
	whole := w.container(t, "whole", top, false)
	w.sees(t, "whole", change(want))
	active, err := w.For(holder).Prepare(ctx, "active whole", whole)
	must(t, err)
	_, err = w.For(holder).View(ctx, "view copied", top)
	must(t, err)

	w = w.inMode(t, false)
	if again, err := w.For(holder).Mounts(ctx, "active whole"); err != nil || !reflect.DeepEqual(again, active) {
		t.Errorf("mounts %v, were %v: %v", again, active, err)
	}
	view, err := w.For(holder).Mounts(ctx, "view copied")
	must(t, err)
	if got := List(t, bound(t, view, "ro")); !slices.Equal(got, want) {
		t.Errorf("a copied view shows %q", got)
	}
	w.sees(t, whole, change(want))
	upper := w.container(t, "upper", top, true)
	above := w.container(t, "above", whole, true)
	w.sees(t, upper, change(want))
	w.sees(t, above, change(change(want)))
	layer := w.layerOn(t, "layer", above, F("d/b", "again"), W(".wh.g"))
	afterwards := edit(change(change(want)), `d/b file "again"`, "g ")
	w.sees(t, layer, afterwards)
	w.active(t, "active upper", upper)

	w = w.inMode(t, true)
	for key, want := range map[string][]string{top: want, whole: change(want), upper: change(want),
		above: change(change(want)), layer: afterwards} {
		w.sees(t, key, want)
	}
	mounts, err := w.For(holder).Mounts(ctx, "active upper")
	must(t, err)
	if got := form(w, mounts); got != "overlay upper" {
		t.Errorf("active snapshot from overlay mode: %s", got)
	}
	w.sees(t, w.layerOn(t, "layer 2", whole, F("d/b", "again"), W(".wh.g")),
		edit(change(want), `d/b file "again"`, "g "))
	last := w.container(t, "last", layer, false)
	w = w.inMode(t, false)
	w.sees(t, last, change(afterwards))
	must(t, w.For(holder).Commit(ctx, "committed upper", "active upper"))
	w.sees(t, "committed upper", append(change(want), `z file "active"`))
}

// container prepares a container on parent, writes to it, and commits it.
func (w *world) container(t *testing.T, name, parent string, overlay bool) string {
	t.Helper()
	sn := w.For(holder)
	mounts, err := sn.Prepare(ctx, "container "+name, parent)
	must(t, err)
	if isOverlay := mounts[0].Type == "overlay"; isOverlay != overlay {
		t.Fatalf("mounts %v", mounts)
	}
	inside(t, mounts, func(dir string) {
		d := filepath.Join(dir, "d")
		must(t, errors.Join(os.RemoveAll(filepath.Join(d, "a")),
			os.WriteFile(filepath.Join(d, "n"), []byte("new"), 0o644), os.RemoveAll(filepath.Join(dir, "e")),
			os.Mkdir(filepath.Join(dir, "e"), 0o700)))
		for _, path := range []string{d + "/n", d, dir + "/e", dir} {
			must(t, os.Chtimes(path, time.Unix(Time, 0), time.Unix(Time, 0)))
		}
	})
	must(t, sn.Commit(ctx, name, "container "+name))
	return name
}

// change returns the lines of a tree after the writes of container.
func change(lines []string) (out []string) {
	for _, l := range lines {
		path, rest, _ := strings.Cut(l, " ")
		switch {
		case path == "d/a" || strings.HasPrefix(path, "e/") || path == "d/n":
		case path == ".":
			out = append(out, ". dir")
		case path == "e":
			out = append(out, "e dir 0700")
		default:
			out = append(out, path+" "+rest)
		}
	}
	i := slices.IndexFunc(out, func(l string) bool { return strings.HasPrefix(l, "e ") })
	return slices.Insert(out, i, `d/n file "new"`)
}

// edit replaces the line of a path and drops the lines that begin with without.
func edit(lines []string, line, without string) (out []string) {
	path, _, _ := strings.Cut(line, " ")
	for _, l := range lines {
		switch {
		case strings.HasPrefix(l, path+" "):
			out = append(out, line)
		case strings.HasPrefix(l, without):
		default:
			out = append(out, l)
		}
	}
	return out
}

// layerOn extracts a layer on parent and returns the name of the committed snapshot.
func (w *world) layerOn(t *testing.T, name, parent string, items ...Item) string {
	t.Helper()
	sn := w.For(holder)
	key := "extract-1 " + name
	mounts, err := sn.Prepare(ctx, key, parent)
	must(t, err)
	_, err = w.Apply(ctx, w.blobs.add(t, Tar(t, items...)).Blob, mounts)
	must(t, err)
	must(t, sn.Commit(ctx, name, key))
	return name
}

// active prepares a snapshot on parent and writes a file to it.
func (w *world) active(t *testing.T, key, parent string) {
	t.Helper()
	mounts, err := w.For(holder).Prepare(ctx, key, parent)
	must(t, err)
	inside(t, mounts, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "z"), []byte("active"), 0o644))
		for _, path := range []string{dir + "/z", dir} {
			must(t, os.Chtimes(path, time.Unix(Time, 0), time.Unix(Time, 0)))
		}
	})
}

// inside calls fn with a directory on which the mounts are mounted.
func inside(t *testing.T, mounts []mount.Mount, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	fn(dir)
}

// sees checks that a view and a container of a snapshot show the tree want.
func (w *world) sees(t *testing.T, key string, want []string) {
	t.Helper()
	sn := w.For(holder)
	for name, do := range map[string]func(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount,
		error){"view": sn.View, "container": sn.Prepare} {
		mounts, err := do(ctx, "sees", key)
		must(t, err)
		inside(t, mounts, func(dir string) {
			if got := List(t, dir); !slices.Equal(got, want) {
				t.Errorf("%s of %s:\n%s\nwant:\n%s", name, key, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
		must(t, sn.Remove(ctx, "sees"))
	}
}
