package unpack_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// generator makes layers with few names, so that entries often collide.
type generator struct{ *rand.Rand }

func (g generator) path() string {
	parts := make([]string, 1+g.IntN(3))
	for i := range parts {
		parts[i] = string("abc"[g.IntN(3)])
	}
	return strings.Join(parts, "/")
}

func (g generator) marker() u.Item {
	dir, base := filepath.Split(g.path())
	if g.IntN(3) == 0 {
		return u.W(dir + ".wh..wh..opq")
	}
	return u.W(dir + ".wh." + base)
}

// entry returns a random entry that is no whiteout. With links, it includes the types whose paths
// depend on the order of entries.
func (g generator) entry(links bool) u.Item {
	n := 4
	if links {
		n = 8
	}
	switch g.IntN(n) {
	case 0, 1:
		return u.D(g.path()).Mode(int64(g.IntN(0o1000)))
	case 2:
		return u.F(g.path(), fmt.Sprint(g.IntN(10))).Mode(int64(g.IntN(0o1000)))
	case 3:
		return u.P(g.path())
	case 4, 5:
		return u.S(g.path(), strings.Repeat("../", g.IntN(3))+g.path())
	case 6:
		return u.S(g.path(), "/"+g.path())
	}
	return u.H(g.path(), g.path())
}

// TestRandom extracts random layers. The returned list matches the directory, and every error is
// stream.ErrInvalidLayer.
func TestRandom(t *testing.T) {
	base := memoryDir(t)
	failed := 0
	for seed := range uint64(600) {
		g := generator{rand.New(rand.NewPCG(seed, 1))}
		var list []u.Item
		for range 2 + g.IntN(12) {
			if g.IntN(4) == 0 {
				list = append(list, g.marker())
			} else {
				list = append(list, g.entry(true))
			}
		}
		root := filepath.Join(base, fmt.Sprint(seed))
		must(t, os.Mkdir(root, 0o700))
		opts := userOptions()
		if seed%2 == 0 {
			opts = opts.WithoutOpenat2()
		}
		o := extractAndCompare(openDir(t, root), u.Tar(t, list...), opts)
		if o.Disagree != "" || o.Err != "" && !o.Invalid {
			t.Errorf("seed %d: %+v", seed, o)
		}
		if o.Err != "" {
			failed++
		}
	}
	if failed == 0 || failed > 400 {
		t.Errorf("%d of 600 layers were refused", failed)
	}
}

// TestWhiteoutsHaveNoOrder shows that a layer gives the same tree whether its whiteouts come
// before, between or after its other entries. Only the merge with a parent may depend on their
// position.
func TestWhiteoutsHaveNoOrder(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root, to list trees of any mode")
	}
	base := memoryDir(t)
	for seed := range uint64(300) {
		g := generator{rand.New(rand.NewPCG(seed, 2))}
		var markers, entries []u.Item
		for range 1 + g.IntN(4) {
			markers = append(markers, g.marker())
		}
		for range 1 + g.IntN(6) {
			entries = append(entries, g.entry(false))
		}
		var first []string
		for i, cut := range []int{0, len(entries) / 2, len(entries)} {
			list := append(append(append([]u.Item{}, entries[:cut]...), markers...), entries[cut:]...)
			root := filepath.Join(base, fmt.Sprintf("%d-%d", seed, i))
			must(t, os.Mkdir(root, 0o700))
			res := extractTo(t, root, u.Tar(t, list...))
			tree := append(u.List(t, root), strings.TrimSpace(strings.TrimPrefix(notes(res), "needs")))
			if i == 0 {
				first = tree
			} else if !reflect.DeepEqual(tree, first) {
				t.Errorf("seed %d, whiteouts after %d entries:\n%s\nbefore all of them:\n%s", seed, cut,
					strings.Join(tree, "\n"),
					strings.Join(first, "\n"))
			}
		}
	}
}
