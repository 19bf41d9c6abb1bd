// Package random makes lists of layers for comparisons: with snapshot/model, and with other programs that
// unpack images.
//
// It owns nothing on disk. Its invariant: the same seed gives the same list, so that the seed in a report is
// enough to reproduce a fault.
//
// The surprising rule: not all layers are equally likely. Most are drawn again until the model accepts them, and at
// least a third of the lists have a layer that is made around hard links to files of the layers below.
package random

import (
	"archive/tar"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/model"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// Options choose what lists may contain.
type Options struct {
	// Odd adds entries that no builder of images makes: devices 0:0, names of 252 to 255 bytes and their
	// whiteouts, negative owners, entries without a name, the root as a file, directories with names of
	// whiteouts. Zero: none.
	Odd bool
	// Tame limits layers to what builders of images make: each path comes once in a layer, directories come before
	// their content, and whiteouts remove something that the layers below have. Zero: entries in any order and number.
	Tame bool
}

// maker makes layers of few names, so that their entries get in each other's way.
type maker struct {
	*rand.Rand
	Options
	links bool  // also make symlinks and hard links, so that paths depend on the layers below
	below state // the result of the layers below
}

// state is the result of a list of layers.
type state struct {
	paths map[string]string // kinds by path
	names []string          // sorted
}

// Image makes the list of layers of a seed.
func Image(seed uint64, o Options) [][]u.Item {
	m := maker{Rand: rand.New(rand.NewPCG(seed, 7)), Options: o}
	m.links = m.IntN(4) > 0
	aim := m.IntN(5) < 2 // make layers around hard links to files of the layers below
	var lists [][]u.Item
	for i := range 2 + m.IntN(4) {
		switch n := m.IntN(20); {
		case aim && i == 0:
			lists = append(lists, m.ground())
		case aim && (i == 1 || n < 6):
			lists = append(lists, m.valid(lists, m.linking))
		case n == 0:
			lists = append(lists, nil)
		case n <= 2 && i > 0:
			lists = append(lists, lists[m.IntN(i)])
		default:
			lists = append(lists, m.valid(lists, m.layer))
		}
	}
	return lists
}

// valid draws layers until the model accepts one above the layers below, and returns it. After 40 draws, and now and
// then after a single one, it returns the last layer even if the model refuses it.
func (m *maker) valid(below [][]u.Item, draw func() []u.Item) (layer []u.Item) {
	result, _ := model.Apply(below)
	m.below = read(result.Lines)
	tries := 40
	if m.IntN(15) == 0 {
		tries = 1
	}
	for range tries {
		layer = draw()
		if m.Tame {
			layer = tame(layer, m.below)
		}
		if _, err := model.Apply(append(slices.Clone(below), layer)); err == nil {
			break
		}
	}
	return layer
}

// read takes paths and kinds from the lines of a result.
func read(lines []string) state {
	s := state{paths: map[string]string{}}
	for _, l := range lines {
		name, rest, _ := strings.Cut(l, " ")
		kind, _, _ := strings.Cut(rest, " ")
		if name != "." {
			s.paths[name] = kind
		}
	}
	s.names = slices.Sorted(maps.Keys(s.paths))
	return s
}

// layer makes a layer of random entries.
func (m *maker) layer() (items []u.Item) {
	for range 1 + m.IntN(8) {
		switch n := m.IntN(40); {
		case n < 12 && len(m.below.names) > 0:
			items = append(items, m.marker())
		case n < 16 && m.Odd:
			items = append(items, m.odd())
		default:
			items = append(items, m.entry())
		}
	}
	return items
}

func (m *maker) name() string { return string("abc"[m.IntN(3)]) }

func (m *maker) path() string {
	parts := make([]string, 1+m.IntN(3))
	for i := range parts {
		parts[i] = m.name()
	}
	return strings.Join(parts, "/")
}

func (m *maker) marker() u.Item { return m.markerOf(m.path()) }

// markerOf makes a whiteout of a path, or now and then an opaque marker in the directory of the path.
func (m *maker) markerOf(of string) u.Item {
	dir, base := path.Split(of)
	if m.IntN(4) == 0 {
		return u.W(dir + ".wh..wh..opq")
	}
	return u.W(dir + ".wh." + base)
}

func (m *maker) entry() u.Item {
	n := 7
	if m.links {
		n = 12
	}
	var i u.Item
	switch m.IntN(n) {
	case 0, 1:
		i = u.D(m.path())
	case 2, 3, 4:
		i = u.F(m.path(), strconv.Itoa(m.IntN(100)))
	case 5:
		i = []u.Item{u.P(m.path()), u.C(m.path(), 1, 3), u.B(m.path(), 7, 7), u.D("./")}[m.IntN(4)]
	case 6, 7, 8:
		i = u.H(m.path(), m.path())
	case 9:
		i = u.S(m.path(), "/"+m.path())
	default:
		i = u.S(m.path(), strings.Repeat("../", m.IntN(3))+m.path())
	}
	return m.dress(i)
}

// dress gives an item attributes.
func (m *maker) dress(i u.Item) u.Item {
	if m.IntN(2) == 0 {
		i = i.Mode(int64(m.IntN(0o10000)))
	}
	if m.IntN(3) == 0 {
		i = i.Owner(m.IntN(3), m.IntN(3))
	}
	if m.IntN(3) == 0 {
		i = i.At(int64(m.IntN(1000)), int64(m.IntN(2))*5)
	}
	oneIn := 40 // rare, because Linux allows user attributes only on files and directories
	if i.Header.Typeflag == tar.TypeReg || i.Header.Typeflag == tar.TypeDir {
		oneIn = 4
	}
	if m.IntN(oneIn) == 0 {
		i = i.Xattr("user."+string("xy"[m.IntN(2)]), strconv.Itoa(m.IntN(5)))
	}
	return i
}

// odd makes an entry that no builder of images makes.
func (m *maker) odd() u.Item {
	long := strings.Repeat("n", 252+m.IntN(4))
	switch m.IntN(9) {
	case 0, 1:
		return u.C(m.path(), 0, 0)
	case 2:
		return m.entry().Owner(-1-m.IntN(2), -1-m.IntN(2))
	case 3:
		return u.F(".", "x")
	case 4:
		return u.F("", "x")
	case 5:
		return m.dress(u.F(path.Join(path.Dir(m.path()), ".wh."+m.name(), m.name()), "x"))
	case 6:
		return u.F(m.name()+"/"+long, "long")
	case 7:
		return u.W(m.name() + "/.wh." + long)
	default:
		return u.W(".wh..wh." + m.name() + "/" + m.name())
	}
}
