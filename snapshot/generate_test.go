package snapshot_test

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/model"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// modelTime is how long TestModel may run; modelSeeds are the first of its lists and how many it takes at most. The environment
// asks for longer runs.
func modelTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TANK_MODEL_TIME")); err == nil {
		return d
	}
	return 20 * time.Second
}

func modelSeeds() (first, count uint64) {
	if _, err := fmt.Sscanf(os.Getenv("TANK_MODEL_SEEDS"), "%d,%d", &first, &count); err == nil {
		return first, count
	}
	return 1, 350
}

func names(sn *snapshot.Snapshotter) (list []string, err error) {
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		list = append(list, i.Name)
		return nil
	})
	return list, err
}

// layerMaker makes layers of few names, so that they get in each other's way.
type layerMaker struct {
	*rand.Rand
	links bool // also what makes paths depend on what is below
}

// generate makes a list of layers.
func generate(r *rand.Rand) [][]Item {
	g := layerMaker{r, r.IntN(3) > 0}
	var lists [][]Item
	for i := range 2 + g.IntN(4) {
		switch n := g.IntN(20); {
		case n == 0:
			lists = append(lists, nil)
		case n <= 2 && i > 0:
			lists = append(lists, lists[g.IntN(i)])
		default:
			lists = append(lists, g.valid(lists))
		}
	}
	return lists
}

// valid makes a layer that mostly is.
func (g layerMaker) valid(below [][]Item) (layer []Item) {
	for range 1 + g.IntN(30) {
		layer = g.layer(len(below))
		if _, err := model.Apply(append(slices.Clone(below), layer)); err == nil {
			break
		}
	}
	return layer
}

func (g layerMaker) layer(i int) []Item {
	var items []Item
	for range 1 + g.IntN(8) {
		switch n := g.IntN(10); {
		case n < 3 && i > 0:
			items = append(items, g.marker())
		default:
			items = append(items, g.entry())
		}
	}
	return items
}

func (g layerMaker) path() string {
	parts := make([]string, 1+g.IntN(3))
	for i := range parts {
		parts[i] = string("abc"[g.IntN(3)])
	}
	return strings.Join(parts, "/")
}

func (g layerMaker) marker() Item {
	dir, base := filepath.Split(g.path())
	if g.IntN(4) == 0 {
		return W(dir + ".wh..wh..opq")
	}
	return W(dir + ".wh." + base)
}

func (g layerMaker) entry() Item {
	n := 7
	if g.links {
		n = 12
	}
	var i Item
	switch g.IntN(n) {
	case 0, 1:
		i = D(g.path())
	case 2, 3, 4:
		i = F(g.path(), strconv.Itoa(g.IntN(100)))
	case 5:
		i = []Item{P(g.path()), C(g.path(), 1, 3), B(g.path(), 7, 7), D("./")}[g.IntN(4)]
	case 6, 7, 8:
		i = H(g.path(), g.path())
	case 9:
		i = S(g.path(), "/"+g.path())
	default:
		i = S(g.path(), strings.Repeat("../", g.IntN(3))+g.path())
	}
	return g.dress(i)
}

// dress gives an item attributes.
func (g layerMaker) dress(i Item) Item {
	if g.IntN(2) == 0 {
		i = i.Mode(int64(g.IntN(0o10000)))
	}
	if g.IntN(3) == 0 {
		i = i.Owner(g.IntN(3), g.IntN(3))
	}
	if g.IntN(3) == 0 {
		i = i.At(int64(g.IntN(1000)), int64(g.IntN(2))*5)
	}
	if g.IntN(4) == 0 {
		i = i.Xattr("user."+string("xy"[g.IntN(2)]), strconv.Itoa(g.IntN(5)))
	}
	return i
}

// plain is the item with nothing special.
func plain(i Item) Item {
	n, l := i.Header.Name, i.Header.Linkname
	switch i.Header.Typeflag {
	case tar.TypeDir:
		return D(n)
	case tar.TypeSymlink:
		return S(n, l)
	case tar.TypeLink:
		return H(n, l)
	case tar.TypeReg:
		return F(n, i.Body)
	}
	return P(n)
}

// program shows layers as a row of a table has them.
func program(lists [][]Item) string {
	var text []string
	for _, items := range lists {
		var parts []string
		for _, i := range items {
			parts = append(parts, show1(i))
		}
		text = append(text, "\t{"+strings.Join(parts, ", ")+"},\n")
	}
	return "[][]Item{\n" + strings.Join(text, "") + "}\n"
}

func show1(i Item) string {
	h := i.Header
	var text string
	mode := int64(0o644)
	switch h.Typeflag {
	case tar.TypeDir:
		text, mode = fmt.Sprintf("D(%q)", h.Name), 0o755
	case tar.TypeSymlink:
		text, mode = fmt.Sprintf("S(%q, %q)", h.Name, h.Linkname), 0o777
	case tar.TypeLink:
		text = fmt.Sprintf("H(%q, %q)", h.Name, h.Linkname)
	case tar.TypeReg:
		text = fmt.Sprintf("F(%q, %q)", h.Name, i.Body)
		if strings.HasPrefix(filepath.Base(h.Name), ".wh.") {
			text = fmt.Sprintf("W(%q)", h.Name)
		}
	case tar.TypeFifo:
		text = fmt.Sprintf("P(%q)", h.Name)
	case tar.TypeChar:
		text = fmt.Sprintf("C(%q, %d, %d)", h.Name, h.Devmajor, h.Devminor)
	case tar.TypeBlock:
		text = fmt.Sprintf("B(%q, %d, %d)", h.Name, h.Devmajor, h.Devminor)
	}
	if h.Mode != mode {
		text += fmt.Sprintf(".Mode(%#o)", h.Mode)
	}
	if h.Uid != 0 || h.Gid != 0 {
		text += fmt.Sprintf(".Owner(%d, %d)", h.Uid, h.Gid)
	}
	if h.ModTime.UnixNano() != Time*1e9 {
		text += fmt.Sprintf(".At(%d, %d)", h.ModTime.Unix(), h.ModTime.Nanosecond())
	}
	for k, v := range h.PAXRecords {
		text += fmt.Sprintf(".Xattr(%q, %q)", strings.TrimPrefix(k, "SCHILY.xattr."), v)
	}
	return text
}
