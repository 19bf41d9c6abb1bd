package snapshot

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// tree is a directory tree in memory, made of entries.
type tree struct {
	entry unpack.Entry
	kids  map[string]*tree // by name
}

// newTree builds a tree from entries in any order. Missing parents become implied directories.
func newTree(entries []unpack.Entry) *tree {
	t := &tree{entry: defaultDir(".")}
	for _, e := range entries {
		if e.Path == "." {
			t.entry = e
			continue
		}
		t.make(e.Path).entry = e
	}
	return t
}

// defaultDir is a directory that nothing says anything about.
func defaultDir(path string) unpack.Entry {
	return unpack.Entry{Path: path, Type: unpack.Dir, Mode: 0o755, Implied: true}
}

// find returns the node at path, nil when there is none.
func (t *tree) find(path string) *tree {
	if path == "." {
		return t
	}
	for name := range strings.SplitSeq(path, "/") {
		if t = t.kids[name]; t == nil {
			return nil
		}
	}
	return t
}

// make returns the node at path, with its parents.
func (t *tree) make(path string) *tree {
	if path == "." {
		return t
	}
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		name := path[strings.LastIndexByte(path[:i], '/')+1 : i]
		kid := t.kids[name]
		if kid == nil {
			kid = &tree{entry: defaultDir(path[:i])}
			if t.kids == nil {
				t.kids = map[string]*tree{}
			}
			t.kids[name] = kid
		}
		t = kid
	}
	return t
}

// names returns the names in a directory, sorted.
func (t *tree) names() []string { return slices.Sorted(maps.Keys(t.kids)) }

// entries lists the tree sorted by path bytes, "." first.
func (t *tree) entries() []unpack.Entry {
	var es []unpack.Entry
	var walk func(*tree)
	walk = func(t *tree) {
		es = append(es, t.entry)
		for _, k := range t.kids {
			walk(k)
		}
	}
	walk(t)
	sortEntries(es)
	return es
}

func sortEntries(es []unpack.Entry) {
	slices.SortFunc(es, func(a, b unpack.Entry) int {
		switch {
		case a.Path == b.Path:
			return 0
		case a.Path == ".":
			return -1
		case b.Path == ".":
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
}

// flatten puts layers, lowest first, on top of each other as overlay shows them: whiteouts and opaque directories
// take effect and are gone, groups of hard links keep the names that are left.
func flatten(layers [][]unpack.Entry) []unpack.Entry {
	t := &tree{entry: defaultDir(".")}
	for i, layer := range layers {
		for _, e := range layer {
			if e.Inode != "" {
				e.Inode = strconv.Itoa(i) + "/" + e.Inode // unique among the layers
			}
			t.put(e)
		}
	}
	es := t.entries()
	regroup(es)
	return es
}

// put lays one entry over the tree. Parents come before their children.
func (t *tree) put(e unpack.Entry) {
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
	dir, name := t, e.Path
	if i := strings.LastIndexByte(e.Path, '/'); i >= 0 {
		dir, name = t.make(e.Path[:i]), e.Path[i+1:]
	}
	if e.Type == unpack.Whiteout {
		delete(dir.kids, name)
		return
	}
	n := &tree{entry: e}
	if old := dir.kids[name]; old != nil && old.entry.Type == unpack.Dir && e.Type == unpack.Dir && !e.Opaque {
		n.kids = old.kids
	}
	n.entry.Opaque = false
	if dir.kids == nil {
		dir.kids = map[string]*tree{}
	}
	dir.kids[name] = n
}

// regroup names each group of hard links by its first path, and forgets groups of one. Entries are sorted.
func regroup(es []unpack.Entry) {
	first := map[string]int{}
	many := map[string]bool{}
	for i, e := range es {
		if e.Inode == "" {
			continue
		}
		if _, ok := first[e.Inode]; ok {
			many[e.Inode] = true
		} else {
			first[e.Inode] = i
		}
	}
	for i, e := range es {
		switch {
		case e.Inode == "":
		case many[e.Inode]:
			es[i].Inode = es[first[e.Inode]].Path
		default:
			es[i].Inode = ""
		}
	}
}
