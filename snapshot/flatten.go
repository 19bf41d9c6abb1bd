package snapshot

import (
	"slices"
	"strconv"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// shown is a tree of what layers on top of each other show. It points to their entries: there may be millions, and an entry takes more than
// all that is around it.
type shown struct {
	entry *unpack.Entry
	kids  map[string]*shown // by name
}

// flatten puts layers, lowest first, on top of each other as overlay shows them: whiteouts and opaque directories
// take effect and are gone, groups of hard links keep the names that are left. The result is sorted by path bytes, "." first, and made of
// the layers' own entries, which are changed.
func flatten(layers [][]unpack.Entry) []*unpack.Entry {
	root := defaultDir(".")
	t := &shown{entry: &root}
	for i, layer := range layers {
		for j := range layer {
			e := &layer[j]
			if e.Inode != "" {
				e.Inode = strconv.Itoa(i) + "/" + e.Inode // unique among the layers
			}
			t.put(e)
		}
	}
	es := t.list(nil)
	slices.SortFunc(es, func(a, b *unpack.Entry) int { return unpack.ComparePaths(a.Path, b.Path) })
	regroup(es)
	return es
}

func (t *shown) list(es []*unpack.Entry) []*unpack.Entry {
	es = append(es, t.entry)
	for _, k := range t.kids {
		es = k.list(es)
	}
	return es
}

// put lays one entry over the tree. Parents come before their children.
func (t *shown) put(e *unpack.Entry) {
	switch {
	case e.Type == unpack.Link:
		return // its fix-up has the file
	case e.Path == ".":
		if e.Opaque {
			t.kids = nil
		}
		if !e.Implied { // an implied root leaves the parents' root as it is
			e.Opaque = false
			t.entry = e
		}
		return
	}
	dir, name := t.parent(e.Path)
	if e.Type == unpack.Whiteout {
		delete(dir.kids, name)
		return
	}
	n := &shown{entry: e}
	if old := dir.kids[name]; old != nil && old.entry.Type == unpack.Dir && e.Type == unpack.Dir && !e.Opaque {
		n.kids = old.kids
	}
	e.Opaque = false
	dir.add(name, n)
}

func (t *shown) add(name string, kid *shown) {
	if t.kids == nil {
		t.kids = map[string]*shown{}
	}
	t.kids[name] = kid
}

// parent returns the directory that a path lies in, and the path's last component. Missing directories become implied ones.
func (t *shown) parent(path string) (dir *shown, name string) {
	start := 0
	for {
		n := strings.IndexByte(path[start:], '/')
		if n < 0 {
			return t, path[start:]
		}
		end := start + n
		kid := t.kids[path[start:end]]
		if kid == nil {
			e := defaultDir(path[:end])
			kid = &shown{entry: &e}
			t.add(path[start:end], kid)
		}
		t, start = kid, end+1
	}
}

// regroup names each group of hard links by its first path, and forgets groups of one. Entries are sorted.
func regroup(es []*unpack.Entry) {
	first := map[string]*unpack.Entry{}
	many := map[string]bool{}
	for _, e := range es {
		if e.Inode == "" {
			continue
		}
		if first[e.Inode] != nil {
			many[e.Inode] = true
		} else {
			first[e.Inode] = e
		}
	}
	for _, e := range es {
		switch {
		case e.Inode == "":
		case many[e.Inode]:
			e.Inode = first[e.Inode].Path
		default:
			e.Inode = ""
		}
	}
}

// pointersTo returns a pointer to each entry.
func pointersTo(es []unpack.Entry) []*unpack.Entry {
	ps := make([]*unpack.Entry, len(es))
	for i := range es {
		ps[i] = &es[i]
	}
	return ps
}
