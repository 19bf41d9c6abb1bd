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

	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestOrder checks for which layers the order of entries is kept, which steps it has, and which files are set aside.
func TestOrder(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root, to set owners")
	}
	for _, row := range []struct {
		id    string
		items []u.Item
		steps []string // nil: the order is not kept
		aside []string
	}{
		{id: "directories with entries", items: items(u.D("d"), u.F("d/a", "1"), u.F("d/a", "2"), u.W("d/.wh.b"),
			u.H("c", "d/a"))},
		{id: "an implied directory", items: items(u.F("d/a", "1"), u.W("d/.wh.b"), u.S("s", "d"))},
		{id: "entries below a new directory", items: items(u.W(".wh.d"), u.F("d/e/a", "1"), u.F("d/e/a", "2"))},
		{id: "an opaque marker in a directory with an entry",
			items: items(u.D("d"), u.W("d/.wh..wh..opq"), u.F("d/a", "1"))},
		{id: "a link to a lower file", items: items(u.H("b", "/x/../a").Mode(0o600)),
			steps: []string{"1 link b => a 600"}},
		{id: "a link to a lower file through a symlink of the layer", items: items(u.S("s", "d"), u.H("b", "s/a")),
			steps: []string{"1 symlink s => d 777 in s", "2 link b => s/a 644"}},
		{id: "a file that is replaced in an implied directory", items: items(u.F("d/a", "1"), u.F("d/a", "22")),
			steps: []string{"1 file d/a 644 aside 1", "2 file d/a 644 in d/a"}, aside: []string{`1 file "1"`}},
		{id: "a replaced file with another hard link",
			items: items(u.F("d/a", "1"), u.H("d/b", "d/a"), u.F("d/a", "2")),
			steps: []string{"1 file d/a 644 in d/b", "2 link d/b => d/a 644", "3 file d/a 644 in d/a"}},
		{id: "a replaced file whose other hard link is replaced as well",
			items: items(u.F("d/a", "1"), u.H("d/b", "d/a"), u.F("d/a", "2"),
				u.F("d/b", "3")),
			steps: []string{"1 file d/a 644 aside 1", "2 link d/b => d/a 644", "3 file d/a 644 in d/a",
				"4 file d/b 644 in d/b"},
			aside: []string{`1 file "1"`}},
		{id: "an implied directory that is replaced", items: items(u.F("d/e/a", "1"), u.F("d/b", "2"), u.S("d", "t")),
			steps: []string{"1 file d/e/a 644 aside 1", "2 file d/b 644 aside 2", "3 symlink d => t 777 in d"},
			aside: []string{`1 file "1"`, `2 file "2"`}},
		{id: "an implied directory whose entry follows later", items: items(u.F("d/a", "1"), u.D("d").Mode(0o700)),
			steps: []string{"1 file d/a 644 in d/a", "2 dir d 700"}},
		{id: "entries through a symlink of the layer", items: items(u.S("s", "d"), u.F("s/a", "1"), u.W("s/.wh.b"),
			u.W("s/.wh..wh..opq")),
			steps: []string{"1 symlink s => d 777 in s", "2 file s/a 644 in d/a", "3 whiteout s/b 0",
				"4 whiteout s 0 opaque"}},
		{id: "a whiteout of a name that ends like the opaque marker",
			items: items(u.S("s", "d"), u.F("s/a", "1"), u.W("s/.wh.b.wh..wh..opq"), u.W(".wh..wh..opq")),
			steps: []string{
				"1 symlink s => d 777 in s", "2 file s/a 644 in d/a", "3 whiteout s/b.wh..wh..opq 0",
				"4 whiteout . 0 opaque",
			}},
		{id: "whiteouts", items: items(u.F("d/a", "1"), u.W(".wh.d"), u.W("d/.wh.a"), u.W("d/.wh..wh..opq")),
			steps: []string{"1 file d/a 644 in d/a", "2 whiteout d 0", "3 whiteout d/a 0", "4 whiteout d 0 opaque"}},
		{id: "entries below a hard link to a lower file", items: items(u.H("l", "a"), u.W("l/.wh.x"), u.F("l/y", "1")),
			steps: []string{"1 link l => a 644", "2 whiteout l/x 0", "3 file l/y 644 in l/y"}},
		{id: "a directory that replaced a file and whose entry follows later",
			items: items(u.F("d/x", "1"), u.F("a", "2"), u.F("a/c", "3"), u.D("a").Mode(0o700), u.D("a")),
			steps: []string{"1 file d/x 644 in d/x", "2 file a 644 aside 2", "3 file a/c 644 in a/c", "4 dir a 700",
				"5 dir a 755"},
			aside: []string{`2 file "2"`}},
		{id: "devices", items: items(u.H("b", "a"), u.C("n", 0, 0)),
			steps: []string{"1 link b => a 644", "2 char n 644 omitted"}},
	} {
		t.Run(row.id, func(t *testing.T) {
			dir := openDir(t, t.TempDir())
			aside := t.TempDir()
			opts := &unpack.Options{Aside: func() (*os.File, error) { return os.Open(aside) }}
			res, err := unpack.Extract(context.Background(), dir, bytes.NewReader(u.Tar(t, row.items...)), opts)
			must(t, err)
			var steps []string
			must(t, res.Steps(func(s *tarlayer.Step) error {
				steps = append(steps, showStep(s))
				return nil
			}))
			if res.Ordered != (row.steps != nil) || !reflect.DeepEqual(steps, row.steps) {
				t.Errorf("ordered %v:\n%s\nwant:\n%s",
					res.Ordered, strings.Join(steps, "\n"), strings.Join(row.steps, "\n"))
			}
			if !res.Ordered {
				return
			}
			if got := u.List(t, aside); !reflect.DeepEqual(got[1:], append([]string{}, row.aside...)) {
				t.Errorf("files set aside:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(row.aside, "\n"))
			}
			must(t, res.Steps(func(s *tarlayer.Step) error {
				if s.Made == "" {
					return nil
				}
				_, err := os.Lstat(filepath.Join(dir.Name(), s.Made))
				return err
			}))
		})
	}
}

func showStep(s *tarlayer.Step) string {
	text := fmt.Sprintf("%d %s %s", s.Seq, s.Type, s.Path)
	if s.Target != "" {
		text += " => " + s.Target
	}
	text += fmt.Sprintf(" %o", s.Mode)
	if s.Opaque {
		text += " opaque"
	}
	if s.Made != "" {
		text += " in " + s.Made
	}
	if s.Aside != "" {
		text += " aside " + s.Aside
	}
	if s.Omitted {
		text += " omitted"
	}
	return text
}
