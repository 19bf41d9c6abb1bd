package snapshot_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// invalid is the error class of refused layers.
var invalid = errdefs.ErrFailedPrecondition

// linkRows are layers whose result above their parents depends on the order of their entries
// (docs/adr/0026-links-to-lower-layers.md).
var linkRows = []stackRow{
	{"a target that is replaced later", [][]Item{{F("a", "1")}, {H("b", "a"), F("a", "2")}},
		[]string{`a file "2"`, `b file "1"`}, nil},
	{"a target that was replaced before", [][]Item{{F("a", "1")}, {F("a", "2"), H("b", "a")}},
		[]string{`a file "2"`, `b file "2" = a`}, nil},
	{"a target that is removed later", [][]Item{{F("a", "1")}, {H("b", "a"), W(".wh.a")}}, []string{`b file "1"`}, nil},
	{"a target that was removed before", [][]Item{{F("a", "1")}, {W(".wh.a"), H("b", "a")}}, nil, invalid},
	{"a target whose directory is removed later", [][]Item{{F("d/a", "1")}, {H("b", "d/a"), W(".wh.d")}},
		[]string{`b file "1"`}, nil},
	{"a target whose directory becomes opaque later", [][]Item{{D("d"), F("d/a", "1")},
		{D("d"), H("d/b", "d/a"), W("d/.wh..wh..opq")}},
		[]string{"d dir", `d/b file "1"`}, nil},
	{"a target whose directory is replaced later", [][]Item{{F("d/a", "1")}, {H("b", "d/a"), F("d", "2")}},
		[]string{`b file "1"`, `d file "2"`}, nil},
	{"a target that is added later", [][]Item{{}, {H("b", "a"), F("a", "1")}}, nil, invalid},
	{"a missing target of a link that is replaced later", [][]Item{{}, {H("b", "a"), F("b", "1")}}, nil, invalid},
	{"a target that is a lower directory", [][]Item{{D("a")}, {H("b", "a")}}, nil, invalid},
	{"a link from a lower file to itself", [][]Item{{F("a", "1")}, {H("a", "a")}}, nil, invalid},
	{"a link over another name of the same inode", [][]Item{{F("a", "1"), H("b", "a")}, {H("b", "a").Mode(0o600)}},
		[]string{`a file 0600 "1"`, `b file 0600 "1" = a`}, nil},
	{"attributes of a link that is replaced later",
		[][]Item{{F("a", "1")}, {H("b", "a").Mode(0o4700).Owner(3, 4), F("b", "2")}},
		[]string{`a file 4700 3:4 "1"`, `b file "2"`}, nil},
	{"attributes that remain only on another lower name", [][]Item{{F("a", "1"), H("c", "a")},
		{H("b", "a").Mode(0o600), W(".wh.a"), W(".wh.b"), F("b", "2")}},
		[]string{`b file "2"`, `c file 0600 "1"`}, nil},
	{"attributes of a link to a file with a capability",
		[][]Item{{F("a", "1").Xattr("security.capability", capability)},
			{H("b", "a").Owner(5, 5), F("a", "2")}},
		[]string{`a file "2"`, fmt.Sprintf(`b file 5:5 "1" security.capability=%q`, capability)}, nil},
	{"a link to a device",
		[][]Item{{C("n", 1, 3)}, {H("m", "n").Mode(0o600), W(".wh.n")}}, []string{"m char 0600 1:3"}, nil},
	{"an entry below a link to a file", [][]Item{{F("a", "1")}, {H("b", "a"), F("b/x", "2")}},
		[]string{`a file "1"`, "b dir @0", `b/x file "2"`}, nil},
	{"an entry below a link to a symlink", [][]Item{{D("t"), S("s", "t")}, {H("l", "s"), F("l/x", "1")}},
		[]string{"l symlink -> t", "s symlink -> t = l", "t dir", `t/x file "1"`}, nil},
	{"a whiteout below a link to a symlink",
		[][]Item{{D("t"), F("t/x", "1"), S("s", "t")}, {H("l", "s"), W("l/.wh.x")}},
		[]string{"l symlink -> t", "s symlink -> t = l", "t dir"}, nil},
	{"a whiteout below a link to a file", [][]Item{{F("a", "1")}, {H("l", "a"), W("l/.wh.x")}},
		[]string{`a file "1"`, `l file "1" = a`}, nil},
	{"a target of this layer through a lower symlink", [][]Item{{S("s", "t")}, {F("t/a", "1"), H("b", "s/a")}},
		[]string{`b file "1"`, "s symlink -> t", "t dir @0", `t/a file "1" = b`}, nil},
	{"a target through a lower symlink whose path this layer replaced",
		[][]Item{{F("d/e/a", "1"), S("s", "d/e")}, {S("d", "f"), F("f/e/a", "2"), H("b", "s/a")}},
		[]string{`b file "2"`, "d symlink -> f", "f dir @0", "f/e dir @0", `f/e/a file "2" = b`, "s symlink -> d/e"},
		nil},
	{"a lower symlink that is followed and then replaced", [][]Item{{D("t"), S("s", "t")},
		{F("s/x", "1"), D("s"), F("s/x", "2")}},
		[]string{"s dir", `s/x file "2"`, "t dir", `t/x file "1"`}, nil},
	{"a lower symlink that is followed and then removed", [][]Item{{D("t"), S("s", "t")}, {F("s/x", "1"), W(".wh.s")}},
		[]string{"t dir", `t/x file "1"`}, nil},
	{"a lower symlink that is removed and then becomes a directory",
		[][]Item{{D("t"), S("s", "t")}, {W(".wh.s"), F("s/x", "1")}},
		[]string{"s dir @0", `s/x file "1"`, "t dir"}, nil},
	{"a lower symlink that is followed before its directory is replaced",
		[][]Item{{D("p"), S("p/s", "/t"), D("t")}, {F("p/s/x", "1"), F("p", "2")}},
		[]string{`p file "2"`, "t dir", `t/x file "1"`}, nil},
	{"a lower symlink with another hard link that is followed",
		[][]Item{{D("t"), S("s", "t"), H("u", "s")}, {F("s/x", "1")}},
		[]string{"s symlink -> t", "t dir", `t/x file "1"`, "u symlink -> t = s"}, nil},
	{"a whiteout below a file with another hard link", [][]Item{{F("a", "1"), H("b", "a")}, {W("a/.wh.x")}},
		[]string{`a file "1"`, `b file "1" = a`}, nil},
	{"a lower symlink through a directory that the layer removes", [][]Item{{F("d/e/o", "1"), S("s", "d/e")},
		{F("s/x", "2"), W(".wh.d")}},
		[]string{"d dir @0", "d/e dir @0", `d/e/x file "2"`, "s symlink -> d/e"}, nil},
	{"a symlink of this layer that leaves the target of a lower symlink", [][]Item{{D("t/u"), S("d", "t/u")},
		{S("d/s", "../x"), F("d/s/f", "1")}},
		[]string{"d symlink -> t/u", "t dir @0", "t/u dir", "t/u/s symlink -> ../x", "t/x dir @0", `t/x/f file "1"`},
		nil},
	{"two files through a lower symlink that is replaced between them",
		[][]Item{{D("t"), D("v"), S("s", "t")}, {F("s/x", "1"), S("s", "v"), F("s/x", "2"), H("y", "t/x")}},
		[]string{"s symlink -> v", "t dir", `t/x file "1"`, "v dir", `v/x file "2"`, `y file "1" = t/x`}, nil},
	{"a link to a lower symlink itself",
		[][]Item{{F("t", "1"), S("d", "t")}, {F("e/f", "2"), H("h", "d")}},
		[]string{"d symlink -> t", "e dir @0", `e/f file "2"`, "h symlink -> t = d", `t file "1"`}, nil},
	{"lower content that a target guessed without the parent would hide",
		[][]Item{{D("t/u"), S("a", "t/u"), D("y"), F("y/d/keep", "1")},
			{S("s", "a/../y"), F("s/d", "2")}},
		[]string{"a symlink -> t/u", "s symlink -> a/../y", "t dir @0", "t/u dir", "t/y dir @0", `t/y/d file "2"`,
			"y dir",
			"y/d dir @0", `y/d/keep file "1"`}, nil},
	{"symlinks that are a loop in the layer alone and none above its parent",
		[][]Item{{S("b", "a"), S("a", "/c/c/c")}, {S("b/c", "c"), W(".wh.a"), W("b/c/.wh.b")}},
		[]string{"b symlink -> a", "c dir @0", "c/c dir @0", "c/c/c dir @0", "c/c/c/c symlink -> c"}, nil},
	{"a file through symlinks that are a loop in the layer alone", [][]Item{{D("t/u"), S("d", "t/u"), D("t/x")},
		{S("d/s", "../x/s"), S("x/s", "/d/s"), F("d/s/f", "1")}},
		[]string{"d symlink -> t/u", "t dir @0", "t/u dir", "t/u/s symlink -> ../x/s", "t/x dir", "t/x/s dir @0",
			`t/x/s/f file "1"`, "x dir @0", "x/s symlink -> /d/s"}, nil},
	{"a loop made through a symlink that a directory replaces later", [][]Item{{D("t"), S("d", "t")},
		{F("d/y", "1"), S("d/l", "l"), D("d"), F("d/l/x", "2")}},
		[]string{"d dir", "d/l dir @0", `d/l/x file "2"`, "t dir", "t/l symlink -> l", `t/y file "1"`}, nil},
	{"symlinks that are a loop above every parent", [][]Item{{D("t"), S("d", "t")},
		{F("d/y", "1"), S("l", "l"), F("l/x", "1")}}, nil, invalid},
	{"a loop of symlinks over two layers", [][]Item{{S("a", "b")}, {S("b", "a"), F("b/x", "1")}}, nil, invalid},
}

const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// loopRows are layers with symlinks that form a loop as long as the layers below are unknown.
var loopRows = []stackRow{
	{"a file through a loop that the parent resolves", [][]Item{
		{D("d"), D("d/e"), S("b", "d/e")}, {S("b/c", "../b/c"), F("b/c/x", "1")}},
		[]string{"b symlink -> d/e", "d dir", "d/b dir @0", "d/b/c dir @0", `d/b/c/x file "1"`, "d/e dir",
			"d/e/c symlink -> ../b/c"}, nil},
	{"a hard link through a loop that the parent resolves", [][]Item{
		{D("d"), D("d/e"), S("b", "d/e"), D("d/b"), D("d/b/c"), F("d/b/c/y", "1")},
		{S("b/c", "../b/c"), H("h", "b/c/y")}},
		[]string{"b symlink -> d/e", "d dir", "d/b dir", "d/b/c dir", `d/b/c/y file "1"`, "d/e dir",
			"d/e/c symlink -> ../b/c", `h file "1" = d/b/c/y`}, nil},
	{"a whiteout through a loop after a symlink on its path was removed", [][]Item{
		{S("b", "a"), S("a", "/c/c/c")}, {S("b/c", "c"), W(".wh.a"), W("b/c/.wh.b")}},
		[]string{"b symlink -> a", "c dir @0", "c/c dir @0", "c/c/c dir @0", "c/c/c/c symlink -> c"}, nil},
	{"a loop through a symlink of the parent", [][]Item{
		{D("l"), D("k"), S("l/m", "/k")}, {S("s", "l/m/../s/t"), F("s/x", "1")}},
		nil, errdefs.ErrFailedPrecondition},
	{"symlinks that are a loop above the parent as well",
		[][]Item{{D("d"), S("b", "d")}, {S("b/c", "c"), F("b/c/x", "1")}},
		nil, errdefs.ErrFailedPrecondition},
	{"a loop without a parent", [][]Item{{S("b/c", "c"), F("b/c/x", "1")}}, nil, errdefs.ErrFailedPrecondition},
	{"a hard link through a loop without a parent", [][]Item{{S("b/c", "c"), H("h", "b/c/x")}}, nil,
		errdefs.ErrFailedPrecondition},
}

func TestLinks(t *testing.T) {
	requireMounts(t)
	for _, row := range slices.Concat(linkRows, loopRows) {
		t.Run(row.testName, row.run)
	}
}

// TestInvalidAtCommit checks that a layer that is invalid above its parent is refused during a pull of containerd:
// Commit refuses an applied layer, and Prepare refuses a known layer whose blob is missing. The same layer is accepted
// above another parent.
func TestInvalidAtCommit(t *testing.T) {
	requireRoot(t)
	for _, parallel := range []bool{false, true} {
		t.Run(fmt.Sprintf("parallel %v", parallel), func(t *testing.T) {
			w := open(t)
			sn := w.For(metadata.Containerd)
			linked := w.blobs.add(t, Tar(t, H("b", "a")))
			good, bad := w.blobs.add(t, Tar(t, F("a", "1"))), w.blobs.add(t, Tar(t, F("c", "1")))
			_, err := extract(ctx, sn, w, []layer.Pair{bad, linked}, parallel, "bad")
			if !errors.Is(err, stream.ErrInvalidLayer) {
				t.Errorf("a link to a missing file: %v", err)
			}
			top, err := extract(ctx, sn, w, []layer.Pair{good, linked}, parallel, "good")
			must(t, err)
			mounts, err := sn.View(ctx, "view", top)
			must(t, err)
			if inNamespace() {
				return
			}
			dir := t.TempDir()
			must(t, mount.All(mounts, dir))
			defer func() { must(t, mount.UnmountAll(dir, 0)) }()
			compare(t, List(t, dir), nil, []string{`a file "1"`, `b file "1" = a`}, nil)
		})
	}
	t.Run("known", func(t *testing.T) {
		w := openWith(t, t.TempDir(), memory{}, &snapshot.Options{
			SyncDelay: -1, Unpack: rights(), SkipKnownBlobs: true,
		})
		sn := w.For(metadata.Containerd)
		linked := w.blobs.add(t, Tar(t, H("b", "a")))
		bad := w.blobs.add(t, Tar(t, F("c", "1")))
		_, err := w.Layers().Unpack(ctx, holder, linked)
		must(t, err)
		parent, err := extract(ctx, sn, w, []layer.Pair{bad}, false, "k8s.io/1")
		must(t, err)
		delete(w.blobs, linked.Blob.Digest)
		chain := identity.ChainID([]digest.Digest{bad.DiffID, linked.DiffID}).String()
		_, err = sn.Prepare(ctx, "k8s.io/2/extract-1 "+chain, parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:                chain,
			"containerd.io/snapshot/cri.layer-digest": linked.Blob.Digest.String(),
		}))
		if !errors.Is(err, stream.ErrInvalidLayer) {
			t.Errorf("a link to a missing file in a known layer: %v", err)
		}
	})
}

// TestSetAside damages the order of a layer that an earlier process left provisional, or a file that was set aside for
// it. Check must report the damage, and the next unpack must repair it.
func TestSetAside(t *testing.T) {
	requireRoot(t)
	items := []Item{F("s/x", "first"), S("s", "v"), F("s/x", "second")}
	for _, damaged := range []string{
		"aside/1", "aside/1 missing", "aside/1 fifo", "aside missing", "aside fifo", "order", "order missing",
		"order fifo",
	} {
		t.Run(damaged, func(t *testing.T) {
			root := t.TempDir()
			w := openAt(t, root, memory{})
			lower := w.blobs.add(t, Tar(t, D("t"), D("v"), S("s", "t")))
			upper := w.blobs.add(t, Tar(t, items...))
			rec, err := w.Layers().Unpack(ctx, holder, upper)
			must(t, err)
			if !rec.Ordered {
				t.Fatal("the record does not mark the layer as ordered")
			}
			must(t, w.close())
			name, how, _ := strings.Cut(damaged, " ")
			at := filepath.Join(root, "layers", rec.Dir, name)
			switch how {
			case "":
				must(t, os.WriteFile(at, []byte("other"), 0o600))
			case "fifo":
				must(t, errors.Join(os.RemoveAll(at), unix.Mkfifo(at, 0o600)))
			case "missing":
				must(t, os.RemoveAll(at))
			}
			db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
			must(t, err)
			s, err := snapshot.Open(root, db, w.blobs, &snapshot.Options{SyncDelay: -1, Unpack: rights()})
			must(t, err)
			defer func() { must(t, errors.Join(s.Close(), db.Close())) }()
			reported := 0
			must(t, s.Check(ctx, func(err metadata.Fault) {
				if reported++; !errdefs.IsDataLoss(err) {
					t.Error(err)
				}
			}))
			if reported != 1 {
				t.Errorf("check reported %d faults", reported)
			}
			var recs []metadata.Layer
			for _, l := range []layer.Pair{lower, upper} {
				rec, err := s.Layers().Unpack(ctx, holder, l)
				must(t, err)
				recs = append(recs, rec)
			}
			path, err := s.Layers().Assemble(ctx, holder, digest.FromString("m"), recs, nil)
			must(t, err)
			compare(t, List(t, path), nil,
				[]string{"s symlink -> v", "t dir", `t/x file "first"`, "v dir", `v/x file "second"`},
				nil)
		})
	}
}
