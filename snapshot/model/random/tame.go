package random

import (
	"archive/tar"
	"path"
	"slices"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/model"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// accepted reports whether the model accepts the layers.
func accepted(layers ...[]u.Item) bool {
	_, err := model.Apply(layers)
	return err == nil
}

// tame turns a layer into one that a builder of images could have made: each path comes once, every directory on
// the way to an entry has an entry before it, hard links name a file of the same layer and repeat its header, and
// whiteouts come last and name something that the layers below have.
func tame(items []u.Item, below state) []u.Item {
	t := tamer{kinds: map[string]u.Item{}, below: below}
	var markers []u.Item
	for _, i := range items {
		i.Header.Name = path.Clean(i.Header.Name)
		switch {
		case i.Header.Name == ".":
		case strings.Contains("/"+i.Header.Name, "/.wh."):
			markers = append(markers, i)
		default:
			t.add(i)
		}
	}
	for _, m := range markers {
		t.mark(m)
	}
	return t.out
}

// tamer collects the entries of a tame layer.
type tamer struct {
	kinds map[string]u.Item // by path
	below state
	out   []u.Item
}

// add adds an entry if its path is new, no other entry is in its way and, for a hard link, the layer has the target.
func (t *tamer) add(i u.Item) {
	h := &i.Header
	if _, again := t.kinds[h.Name]; again || !t.parents(h.Name) {
		return
	}
	if h.Typeflag == tar.TypeLink {
		target, ok := t.kinds[path.Clean(h.Linkname)]
		of := target.Header
		if !ok || of.Typeflag == tar.TypeDir {
			return
		}
		h.Mode, h.Uid, h.Gid, h.ModTime, h.PAXRecords = of.Mode, of.Uid, of.Gid, of.ModTime, nil
	}
	t.put(i)
}

func (t *tamer) put(i u.Item) {
	t.kinds[i.Header.Name] = i
	t.out = append(t.out, i)
}

// mark adds a marker: a whiteout if the layers below have the path and this layer does not, an opaque marker if
// this layer has an entry for its directory.
func (t *tamer) mark(m u.Item) {
	dir, base := path.Split(m.Header.Name)
	of := dir + strings.TrimPrefix(base, ".wh.")
	_, own := t.kinds[of]
	_, there := t.below.paths[of]
	_, again := t.kinds[m.Header.Name]
	_, made := t.kinds[path.Clean(dir)]
	if !again && (there && !own && t.parents(m.Header.Name) || base == ".wh..wh..opq" && made) {
		t.put(m)
	}
}

// parents adds the directories on a path that have no entry yet. It returns false if an entry on the way is not a
// directory.
func (t *tamer) parents(name string) bool {
	var missing []u.Item
	for p := path.Dir(name); p != "."; p = path.Dir(p) {
		switch i, there := t.kinds[p]; {
		case !there:
			missing = append(missing, u.D(p))
		case i.Header.Typeflag != tar.TypeDir:
			return false
		}
	}
	slices.Reverse(missing)
	for _, d := range missing {
		t.put(d)
	}
	return true
}
