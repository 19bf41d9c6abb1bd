package snapshot_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// memory holds the blobs of a test.
type memory map[digest.Digest][]byte

func (m memory) Open(_ context.Context, d digest.Digest) (io.ReadCloser, error) {
	b, ok := m[d]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m memory) Size(d digest.Digest) (int64, bool) {
	b, ok := m[d]
	return int64(len(b)), ok
}

func (m memory) add(t testing.TB, tar []byte) layer.Pair {
	gz := Gzip(t, tar)
	d := digest.FromBytes(gz)
	m[d] = gz
	return layer.Pair{
		Blob:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(gz))},
		DiffID: digest.FromBytes(tar),
	}
}

// world is an open root. The end of the test checks and closes it.
type world struct {
	*snapshot.Store
	root  string
	db    *metadata.DB
	blobs memory
}

func open(t *testing.T) *world {
	t.Helper()
	return openAt(t, t.TempDir(), memory{})
}

func openAt(t *testing.T, root string, blobs memory) *world {
	t.Helper()
	return openWith(t, root, blobs, &snapshot.Options{SyncDelay: -1, Unpack: rights()})
}

func openWith(t *testing.T, root string, blobs memory, opts *snapshot.Options) *world {
	t.Helper()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	s, err := snapshot.Open(root, db, blobs, opts)
	must(t, err)
	w := &world{s, root, db, blobs}
	t.Cleanup(func() {
		if w.Store == nil {
			return
		}
		report := func(f metadata.Fault) { t.Error(f) }
		must(t, errors.Join(db.Check(report), w.Check(context.Background(), report), w.Close()))
		w.Store = nil
		w.checkRecords(t)
		must(t, db.Close())
	})
	return w
}

// checkRecords verifies that the durable records of the snapshots say what the database says.
func (w *world) checkRecords(t *testing.T) {
	t.Helper()
	found, err := record.Recover(ctx, w.root)
	must(t, err)
	if len(found.Superseded) > 0 {
		t.Errorf("records with the same key: %+v", found.Superseded)
	}
	is := map[string]string{}
	for _, r := range found.Records {
		r.Content = false
		text, err := json.Marshal(r)
		must(t, err)
		is[r.Key] = string(text)
	}
	must(t, w.db.View(func(tx *metadata.Tx) error {
		for _, key := range tx.Keys(metadata.KindSnapshot, "", -1) {
			sn, err := tx.Snapshot(key)
			must(t, err)
			text, err := json.Marshal(record.Record{Snapshot: sn, Holders: tx.Holders(metadata.SnapshotNode(key))})
			must(t, err)
			if sn.Entry() == "" {
				t.Errorf("snapshot %s has no durable record", key)
			} else if is[key] != string(text) {
				t.Errorf("the durable record is\n%s, the database has\n%s", is[key], text)
			}
		}
		return nil
	}))
}

func (w *world) close() error {
	s := w.Store
	w.Store = nil
	return errors.Join(s.Close(), w.db.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const holder = metadata.Holder("test")

// stackRow is a list of layers and its expected merge: lines of List, or the class of the error.
type stackRow struct {
	testName string
	layers   [][]Item
	want     []string
	wantErr  error
}

// stackRows are lists of layers with their merge, which is the same for every way of merging. A row
// is named after the case of docs/cases.md that it shows.
var stackRows = []stackRow{
	{"E1 whiteout of a file", [][]Item{{F("a", "1"), F("b", "1")}, {W(".wh.a")}}, []string{`b file "1"`}, nil},
	{"E2 whiteout of a tree", [][]Item{{D("d"), F("d/x", "1")}, {W(".wh.d")}}, nil, nil},
	{"E5 whiteout then a new directory", [][]Item{{D("d"), F("d/old", "1")}, {W(".wh.d"), D("d"), F("d/new", "2")}},
		[]string{"d dir", `d/new file "2"`}, nil},
	{"E6 whiteout of an implied directory's name",
		[][]Item{{D("d").Mode(0o700), F("d/old", "1")}, {F("d/new", "2"), W(".wh.d")}},
		[]string{"d dir @0", `d/new file "2"`}, nil},
	{"E7 opaque", [][]Item{{D("d"), F("d/old", "1")}, {D("d").Mode(0o750), W("d/.wh..wh..opq"), F("d/n", "2")}},
		[]string{"d dir 0750", `d/n file "2"`}, nil},
	{"E10 opaque and whiteouts in one directory", [][]Item{{D("d"), F("d/a", "1"), F("d/b", "1")},
		{D("d"), W("d/.wh.a"), W("d/.wh..wh..opq"), F("d/c", "2")}}, []string{"d dir", `d/c file "2"`}, nil},
	{"E11 opaque root", [][]Item{{F("a", "1")}, {W(".wh..wh..opq"), F("b", "2")}}, []string{`b file "2"`}, nil},
	{"E11 opaque root above two layers",
		[][]Item{{D("./").Mode(0o700).At(5, 0), F("a", "1")}, {F("x/b", "2")}, {W(".wh..wh..opq"), F("c", "3")},
			{F("x/d", "4")}},
		[]string{". dir 0700 @5", `c file "3"`, "x dir @0", `x/d file "4"`}, nil},
	{"implied above an opaque directory",
		[][]Item{{D("d"), F("d/x", "1")}, {D("d").Mode(0o700), W("d/.wh..wh..opq"), F("d/y", "2")}, {F("d/z", "3")}},
		[]string{"d dir 0700", `d/y file "2"`, `d/z file "3"`}, nil},
	{"an opaque marker in an implied directory",
		[][]Item{{D("d").Mode(0o700).Owner(5, 5), F("d/x", "1")}, {W("d/.wh..wh..opq"), F("d/n", "2")}},
		[]string{"d dir 0700 5:5", `d/n file "2"`}, nil},
	{"E12 an opaque marker behind a symlink",
		[][]Item{{D("r"), D("r/l").Mode(0o711), F("r/l/o", "1"), S("l", "r/l")}, {W("l/.wh..wh..opq"), F("l/n", "2")}},
		[]string{"l symlink -> r/l", "r dir", "r/l dir 0711", `r/l/n file "2"`}, nil},
	{"E12 an opaque marker in a missing directory", [][]Item{{F("a", "1")}, {W("m/.wh..wh..opq")}},
		[]string{`a file "1"`}, nil},
	{"E12 an opaque marker below a file", [][]Item{{F("m", "1")}, {W("m/.wh..wh..opq")}}, []string{`m file "1"`}, nil},
	{"a link to a file that an opaque directory hides",
		[][]Item{{D("d"), F("d/a", "1")}, {W("d/.wh..wh..opq"), H("b", "d/a")}}, nil, errdefs.ErrFailedPrecondition},
	{"E13 whiteout of a missing path", [][]Item{{F("a", "1")}, {W(".wh.b"), W("x/y/.wh.z")}}, []string{`a file "1"`},
		nil},
	{"E13 whiteout below a file", [][]Item{{F("n", "1")}, {W("n/.wh.z")}}, []string{`n file "1"`}, nil},
	{"a lone whiteout in an implied directory",
		[][]Item{{D("d").Mode(0o700).Owner(3, 4), F("d/x", "1"), F("d/y", "1")}, {W("d/.wh.x")}},
		[]string{"d dir 0700 3:4", `d/y file "1"`}, nil},
	{"E17 removed and added and removed", [][]Item{{F("a", "1")}, {W(".wh.a")}, {F("a", "3")}, {W(".wh.a")}}, nil, nil},
	{"E18 links within a layer", [][]Item{{F("a", "1"), H("b", "a")}}, []string{`a file "1"`, `b file "1" = a`}, nil},
	{"E19 link to a lower file", [][]Item{{D("d"), F("d/a", "1")}, {H("b", "d/a")}},
		[]string{`b file "1"`, "d dir", `d/a file "1" = b`}, nil},
	{"E19 link to a lower file with names", [][]Item{{F("a", "1"), H("c", "a")}, {H("b", "c")}},
		[]string{`a file "1"`, `b file "1" = a`, `c file "1" = a`}, nil},
	{"E19 two links and the mode of the header",
		[][]Item{{F("a", "1").Mode(0o600)}, {H("b", "a"), H("c", "a").Mode(0o640).Owner(7, 8)}},
		[]string{`a file 0640 7:8 "1"`, `b file 0640 7:8 "1" = a`, `c file 0640 7:8 "1" = a`}, nil},
	{"E19 link whose lower name is replaced too", [][]Item{{F("a", "1"), H("c", "a")}, {H("b", "c"), F("a", "2")}},
		[]string{`a file "2"`, `b file "1"`, `c file "1" = b`}, nil},
	{"E19 xattrs of the header are added",
		[][]Item{{F("a", "1").Xattr("user.a", "1"), S("s", "a")},
			{H("b", "a").Xattr("user.b", "2"), H("z", "s").Xattr("user.b", "2")}},
		[]string{`a file "1" user.a="1" user.b="2"`, `b file "1" = a user.a="1" user.b="2"`, "s symlink -> a",
			"z symlink -> a = s"}, nil},
	{"E23 a link into what it replaces", [][]Item{{F("c/c", "1")}, {H("c", "c/c")}}, nil,
		errdefs.ErrFailedPrecondition},
	{"E19 xattrs of two headers",
		[][]Item{{F("a", "1")},
			{H("c", "a").Xattr("user.a", "1").Mode(0o600), H("b", "a").Xattr("user.b", "2").Mode(0o640)}},
		[]string{`a file 0640 "1" user.a="1" user.b="2"`, `b file 0640 "1" = a user.a="1" user.b="2"`,
			`c file 0640 "1" = a user.a="1" user.b="2"`}, nil},
	{"E19 link whose other lower name is removed with its directory",
		[][]Item{{F("a", "1"), D("d"), H("d/a", "a"), D("e"), H("e/a", "a"), D("f"), H("f/a", "a")},
			{H("b", "a"), W(".wh.d"), S("e", "x"), W("f/.wh..wh..opq")}},
		[]string{`a file "1"`, `b file "1" = a`, "e symlink -> x", "f dir"}, nil},
	{"E20 replace one of two links", [][]Item{{F("a", "1"), H("b", "a")}, {F("a", "2")}},
		[]string{`a file "2"`, `b file "1"`}, nil},
	{"E22 link to nothing", [][]Item{{F("a", "1")}, {H("b", "none")}}, nil, errdefs.ErrFailedPrecondition},
	{"E25 directory to file", [][]Item{{D("n"), F("n/x", "1")}, {F("n", "2")}}, []string{`n file "2"`}, nil},
	{"E25 file to directory", [][]Item{{F("n", "1")}, {D("n"), F("n/x", "2")}}, []string{"n dir", `n/x file "2"`}, nil},
	{"E25 directory to symlink", [][]Item{{D("n"), F("n/x", "1")}, {S("n", "/y")}}, []string{"n symlink -> /y"}, nil},
	{"E25 symlink to directory", [][]Item{{D("y"), S("n", "y")}, {D("n"), F("n/x", "2")}},
		[]string{"n dir", `n/x file "2"`, "y dir"}, nil},
	{"E26 implied directory over a symlink",
		[][]Item{{D("usr"), D("usr/lib").Mode(0o711).Owner(1, 2), S("lib", "usr/lib")}, {F("lib/x", "2")}},
		[]string{"lib symlink -> usr/lib", "usr dir", "usr/lib dir 0711 1:2", `usr/lib/x file "2"`}, nil},
	{"E26 absolute symlink and deeper and a whiteout", [][]Item{
		{D("usr"), D("usr/lib"), D("usr/lib/p").Mode(0o700), F("usr/lib/p/old", "1"), S("lib", "/usr/lib")},
		{F("lib/p/q/x", "2"), W("lib/p/.wh.old")}},
		[]string{"lib symlink -> /usr/lib", "usr dir", "usr/lib dir", "usr/lib/p dir 0700", "usr/lib/p/q dir @0",
			`usr/lib/p/q/x file "2"`}, nil},
	{"E26 an explicit directory below the symlink",
		[][]Item{{D("r"), D("r/d").Mode(0o700), F("r/d/o", "1"), S("l", "r")},
			{D("l/d").Mode(0o750), F("l/d/x", "2")}},
		[]string{"l symlink -> r", "r dir", "r/d dir 0750", `r/d/o file "1"`, `r/d/x file "2"`}, nil},
	{"E26 dangling symlink", [][]Item{{S("l", "new/dir")}, {F("l/x", "2")}},
		[]string{"l symlink -> new/dir", "new dir @0", "new/dir dir @0", `new/dir/x file "2"`}, nil},
	{"E26 symlink out of the root", [][]Item{{S("l", "../../../etc"), D("etc").Mode(0o700)}, {F("l/x", "2")}},
		[]string{"etc dir 0700", `etc/x file "2"`, "l symlink -> ../../../etc"}, nil},
	{"E26 chain of symlinks", [][]Item{{S("a", "b"), S("b", "/c"), D("c")}, {F("a/x", "2")}},
		[]string{"a symlink -> b", "b symlink -> /c", "c dir", `c/x file "2"`}, nil},
	{"E26 a loop of symlinks is replaced", [][]Item{{S("l", "l")}, {F("l/x", "2")}},
		[]string{"l dir @0", `l/x file "2"`}, nil},
	{"E26 a whiteout behind a loop of symlinks", [][]Item{{S("l", "l")}, {W("l/d/.wh.x")}}, []string{"l symlink -> l"},
		nil},
	{"E26 a whiteout behind a symlink to a file", [][]Item{{F("f", "1"), S("l", "f")}, {W("l/.wh.x")}},
		[]string{`f file "1"`, "l symlink -> f"}, nil},
	{"E26 an opaque marker behind a dangling symlink", [][]Item{{S("l", "none")}, {W("l/.wh..wh..opq")}},
		[]string{"l symlink -> none"}, nil},
	{"E26 a hard link to a path behind a loop", [][]Item{{S("l", "l")}, {H("h", "l/x")}}, nil,
		errdefs.ErrFailedPrecondition},
	{"E26 a whiteout of nothing where a symlink leads",
		[][]Item{{S("c", "a/c")}, {W("a/c/.wh.a"), W("a/d/.wh.a"), D("c/a")}},
		[]string{"a dir @0", "a/c dir @0", "a/c/a dir", "c symlink -> a/c"}, nil},
	{"E26 an opaque marker behind a symlink and below where it leads",
		[][]Item{{S("a", "b"), F("b/c/o", "1")}, {W("a/.wh..wh..opq"), F("b/c/n", "2"), F("a/m", "3")}},
		[]string{"a symlink -> b", "b dir @0", "b/c dir @0", `b/c/n file "2"`, `b/m file "3"`}, nil},
	{"E26 a symlink to a file", [][]Item{{F("f", "1"), S("l", "f")}, {F("l/x", "2")}},
		[]string{"f dir @0", `f/x file "2"`, "l symlink -> f"}, nil},
	{"E26 a whiteout of what a symlink leads to",
		[][]Item{{S("c", "../a"), F("a/b", "1")}, {F("c/b", "2"), W("a/.wh.b")}},
		[]string{"a dir @0", `a/b file "2"`, "c symlink -> ../a"}, nil},
	{"E26 a whiteout behind a symlink and a directory where it leads",
		[][]Item{{D("a"), D("a/c"), F("a/c/o", "1"), S("c", "/a")}, {D("a/c/c"), W("c/.wh.c")}},
		[]string{"a dir", "a/c dir @0", "a/c/c dir", "c symlink -> /a"}, nil},
	{"E26 a whiteout below a file where a symlink leads",
		[][]Item{{F("b", "1"), S("c", "../../b")}, {D("c/a"), W("b/.wh.a")}},
		[]string{"b dir @0", "b/a dir", "c symlink -> ../../b"}, nil},
	{"E26 links with one behind a symlink",
		[][]Item{{S("lib", "usr/lib"), D("usr"), D("usr/lib")},
			{F("lib/x", "1"), H("usr/lib/y", "lib/x"), H("z", "lib/x")}},
		[]string{"lib symlink -> usr/lib", "usr dir", "usr/lib dir", `usr/lib/x file "1"`,
			`usr/lib/y file "1" = usr/lib/x`, `z file "1" = usr/lib/x`}, nil},
	{"E26 a directory that is only implied behind a symlink",
		[][]Item{{S("b", "/a")}, {F("b/a/b", "1"), D("a/a").Mode(0o700)}},
		[]string{"a dir @0", "a/a dir 0700", `a/a/b file "1"`, "b symlink -> /a"}, nil},
	{"E26 a file behind two symlinks",
		[][]Item{{D("a"), S("c", "a"), S("d", "a")}, {F("d/x", "1"), F("c/x", "2"), F("c/y", "3"), F("d/y", "4")}},
		[]string{"a dir", `a/x file "2"`, `a/y file "4"`, "c symlink -> a", "d symlink -> a"}, nil},
	{"E27 implied directory over a file", [][]Item{{F("n", "1")}, {F("n/a/b", "2")}},
		[]string{"n dir @0", "n/a dir @0", `n/a/b file "2"`}, nil},
	{"E28 attributes of a directory are replaced",
		[][]Item{{D("d").Mode(0o700).Owner(5, 5).Xattr("user.x", "1"), F("d/x", "1")}, {D("d")}},
		[]string{"d dir", `d/x file "1"`}, nil},
	{"E33 implied directories keep everything of the parent", [][]Item{
		{D("p").Mode(0o1777).Owner(1, 2).At(1234567890, 987654321).Xattr("user.k", "v"), D("p/q").At(5, 0)},
		{F("p/q/x", "2")}},
		[]string{`p dir 1777 1:2 @1234567890.987654321 user.k="v"`, "p/q dir @5", `p/q/x file "2"`}, nil},
	{"E33 over two layers that imply", [][]Item{{D("p").Mode(0o700)}, {F("p/a", "2")}, {F("p/b", "3")}},
		[]string{"p dir 0700", `p/a file "2"`, `p/b file "3"`}, nil},
	{"implied without a parent", [][]Item{{F("a/b/c", "1")}}, []string{"a dir @0", "a/b dir @0", `a/b/c file "1"`},
		nil},
	{"a repeated layer",
		[][]Item{{D("d").Mode(0o700), F("d/x", "1")}, {F("d/y", "2"), W("d/.wh.x")},
			{D("d").Mode(0o700), F("d/x", "1")}},
		[]string{"d dir 0700", `d/x file "1"`, `d/y file "2"`}, nil},
	{"a repeated layer that implies",
		[][]Item{{D("d").Mode(0o700)}, {F("d/x", "1")}, {D("d").Mode(0o711)}, {F("d/x", "1")}},
		[]string{"d dir 0711", `d/x file "1"`}, nil},
	{"empty layers", [][]Item{{}, {F("a", "1")}, {}}, []string{`a file "1"`}, nil},
	{"nothing but empty layers", [][]Item{{}, {}}, nil, nil},
	{"E29 the root directory", [][]Item{{D("./").Mode(0o1777).Owner(3, 3).At(77, 0), F("a", "1")}, {F("b", "2")}},
		[]string{". dir 1777 3:3 @77", `a file "1"`, `b file "2"`}, nil},
	{"E29 the root directory of an empty layer", [][]Item{{F("a", "1")}, {D("./").Mode(0o700).At(77, 0)}},
		[]string{". dir 0700 @77", `a file "1"`}, nil},
	{"E37 capabilities and setuid",
		[][]Item{{F("c", "1").Xattr("security.capability",
			"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			F("s", "1").Mode(0o4755).Owner(1, 1)}, {F("x", "2")}},
		[]string{`c file "1" security.capability="\x01\x00\x00\x02\x00 ` +
			`\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`, `s file 4755 1:1 "1"`, `x file "2"`}, nil},
}

func TestStacks(t *testing.T) {
	requireMounts(t)
	for _, row := range stackRows {
		t.Run(row.testName, row.run)
	}
}

// run merges the layers in every way.
func (row stackRow) run(t *testing.T) {
	w := open(t)
	layers := make([]layer.Pair, len(row.layers))
	for i, items := range row.layers {
		layers[i] = w.blobs.add(t, Tar(t, items...))
	}
	t.Run("mounted sequential", func(t *testing.T) {
		got, err := mounted(t, w, layers, false)
		row.containerd().compare(t, got, err)
	})
	t.Run("mounted parallel", func(t *testing.T) {
		got, err := mounted(t, w, layers, true)
		row.containerd().compare(t, got, err)
	})
	t.Run("copied", func(t *testing.T) {
		got, err := assembled(t, w, layers, false)
		row.compare(t, got, err)
	})
	t.Run("moved", func(t *testing.T) {
		w := openAt(t, t.TempDir(), w.blobs)
		got, err := assembled(t, w, layers, true)
		row.compare(t, got, err)
	})
}

// containerd returns the row as snapshots show it.
func (row stackRow) containerd() stackRow {
	row.want = underContainerd(row.want)
	return row
}

// underContainerd returns lines with the root directory as a snapshot shows it: the entry of a
// layer for the root changes only its time.
func underContainerd(lines []string) []string {
	if len(lines) == 0 || !strings.HasPrefix(lines[0], ". dir") {
		return lines
	}
	root := ". dir"
	for _, field := range strings.Fields(lines[0]) {
		if strings.HasPrefix(field, "@") {
			root += " " + field
		}
	}
	if root == ". dir @0" {
		return lines[1:]
	}
	return append([]string{root}, lines[1:]...)
}

// compare compares the outcome with the row. In a user namespace it accepts a missing error: the
// missing target of a link may be a device that was left out.
func (row stackRow) compare(t *testing.T, got []string, err error) {
	t.Helper()
	if inNamespace() && err == nil && row.userLeavesOut() {
		return
	}
	compare(t, got, err, row.want, row.wantErr)
}

func compare(t *testing.T, got []string, err error, want []string, wantErr error) {
	t.Helper()
	if inNamespace() {
		want = confined(want)
	}
	if !errors.Is(err, wantErr) {
		t.Fatalf("error %v, want %v", err, wantErr)
	}
	if wantErr == nil && err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// mounted unpacks the layers as containerd does and lists a view of the top snapshot.
func mounted(t *testing.T, w *world, layers []layer.Pair, parallel bool) ([]string, error) {
	t.Helper()
	ctx := context.Background()
	sn := w.For(metadata.Holder(t.Name()))
	top, err := extract(ctx, sn, w, layers, parallel, t.Name())
	if err != nil {
		return nil, err
	}
	mounts, err := sn.View(ctx, "view "+t.Name(), top)
	if err != nil {
		return nil, err
	}
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	return List(t, dir), nil
}

func extract(ctx context.Context, sn *snapshot.Snapshotter, w *world, layers []layer.Pair, parallel bool,
	ns string) (string, error) {
	diffs := make([]digest.Digest, len(layers))
	for i, l := range layers {
		diffs[i] = l.DiffID
	}
	chains := identity.ChainIDs(diffs)
	names := func(i int) string { return ns + "/" + chains[i].String() }
	for i, l := range layers {
		labels := map[string]string{
			snapshots.LabelSnapshotRef:    chains[i].String(),
			snapshots.LabelSnapshotDiffID: l.DiffID.String(),
		}
		parent, opts := "", []snapshots.Opt{}
		if i > 0 {
			labels["containerd.io/snapshot/parent-chain-id"] = chains[i-1].String()
			if parallel {
				opts = append(opts, snapshots.WithParent(names(i-1)))
			} else {
				parent = names(i - 1)
			}
		}
		key := fmt.Sprintf("%s/extract-%d %s", ns, i, chains[i])
		mounts, err := sn.Prepare(ctx, key, parent, snapshots.WithLabels(labels))
		if err != nil {
			return "", err
		}
		got, err := w.Apply(ctx, l.Blob, mounts)
		if err != nil {
			return "", err
		}
		if got.Digest != l.DiffID {
			return "", fmt.Errorf("diff ID %s, want %s", got.Digest, l.DiffID)
		}
		if err := sn.Commit(ctx, names(i), key, opts...); err != nil {
			return "", err
		}
	}
	return names(len(layers) - 1), nil
}

// assembled assembles the layers to a rootfs and lists it.
func assembled(t *testing.T, w *world, layers []layer.Pair, consume bool) ([]string, error) {
	t.Helper()
	ctx := context.Background()
	var recs []metadata.Layer
	for _, l := range layers {
		rec, err := w.Layers().Unpack(ctx, holder, l)
		if err != nil {
			return nil, err
		}
		recs = append(recs, rec)
	}
	path, err := w.Layers().Assemble(ctx, holder, digest.FromString(t.Name()), recs,
		&layer.AssembleOptions{Consume: consume})
	if err != nil {
		return nil, err
	}
	return List(t, path), nil
}
