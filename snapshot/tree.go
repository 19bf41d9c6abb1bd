package snapshot

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// tree is a directory tree in memory, made of entries.
type tree struct {
	entry unpack.Entry
	kids  map[string]*tree // by name
	adds  answer           // a plan's note: whether anything below the directory adds something
}

// answer is a fact about a node that is determined once.
type answer byte

const (
	unknown answer = iota
	yes
	no
)

// nodeMemory is what a node takes without its strings, with its place in the directory's map.
const nodeMemory = 256

// newLayerTree builds the tree of a layer. Path of an entry is its name only, and Inode what shortName makes of it:
// there may be a million of them. grow is called before the tree takes so many bytes more.
func newLayerTree(entries entrySource, grow func(bytes int64) error) (*tree, error) {
	const step = 256 << 10
	t := newRoot(defaultDir("."))
	asked, bytes := int64(0), int64(0)
	return t, entries(func(e *unpack.Entry) error {
		n := t
		for name, rest, more := "", e.Path, e.Path != "."; more; {
			name, rest, more = strings.Cut(rest, "/")
			kid := n.kids[name]
			if kid == nil {
				name = strings.Clone(name) // not a part of the path
				kid = newRoot(defaultDir(name))
				if n.kids == nil {
					n.kids = map[string]*tree{}
				}
				n.kids[name] = kid
				bytes += nodeMemory + int64(len(name))
			}
			n = kid
		}
		name := n.entry.Path
		n.entry = *e
		n.entry.Path, n.entry.Inode = name, shortName(e.Inode)
		bytes += int64(len(n.entry.Target) + len(n.entry.Inode))
		if bytes < asked {
			return nil
		}
		asked += step
		return grow(step)
	})
}

// shortName stands for the name of a group of hard links. A name may be long, and each entry of the group has it.
func shortName(inode string) string {
	if len(inode) <= 64 {
		return inode
	}
	return digest.FromString(inode).Encoded()
}

func newRoot(e unpack.Entry) *tree { return &tree{entry: e} }

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
func (t *tree) entries() []*unpack.Entry {
	var es []*unpack.Entry
	var walk func(*tree)
	walk = func(t *tree) {
		es = append(es, &t.entry)
		for _, k := range t.kids {
			walk(k)
		}
	}
	walk(t)
	slices.SortFunc(es, func(a, b *unpack.Entry) int { return unpack.ComparePaths(a.Path, b.Path) })
	return es
}

// ownAll gives all nodes to an ordinary user.
func (t *tree) ownAll(uid, gid uint32) {
	t.entry.UID, t.entry.GID = uid, gid
	for _, k := range t.kids {
		k.ownAll(uid, gid)
	}
}
