package tree

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Node is a directory tree in memory.
type Node struct {
	Entry entry.Entry
	Kids  map[string]*Node // by name
	Adds  Answer           // kept for package overlay: whether an entry below the directory adds something
}

// Answer is a fact about a node that is computed once.
type Answer byte

// The answers. Unknown means that the fact was not determined yet.
const (
	Unknown Answer = iota
	Yes
	No
)

// NodeMemory is the number of bytes that a node takes with its place in the map of its directory, without its strings.
const NodeMemory = 256

// Read reads a list into memory. There may be a million entries, so Path of an entry is only its name,
// and Inode is what ShortName returns for it. grow is called before the tree grows by that many bytes,
// and an error of it ends Read.
func Read(entries List, grow func(bytes int64) error) (*Node, error) {
	const step = 256 << 10
	t := New(DefaultDir("."))
	asked, bytes := int64(0), int64(0)
	return t, entries(func(e *entry.Entry) error {
		n := t
		for name, rest, more := "", e.Path, e.Path != "."; more; {
			name, rest, more = strings.Cut(rest, "/")
			kid := n.Kids[name]
			if kid == nil {
				name = strings.Clone(name) // not a part of the path
				kid = New(DefaultDir(name))
				if n.Kids == nil {
					n.Kids = map[string]*Node{}
				}
				n.Kids[name] = kid
				bytes += NodeMemory + int64(len(name))
			}
			n = kid
		}
		name := n.Entry.Path
		n.Entry = *e
		n.Entry.Path, n.Entry.Inode = name, ShortName(e.Inode)
		bytes += int64(len(n.Entry.Target) + len(n.Entry.Inode))
		if bytes < asked {
			return nil
		}
		asked += step
		return grow(step)
	})
}

// ShortName returns a short name for a group of hard links: each entry of the group has that name, and it may be a long
// path.
func ShortName(inode string) string {
	if len(inode) <= 64 {
		return inode
	}
	return digest.FromString(inode).Encoded()
}

// New returns a tree that consists of one node.
func New(e entry.Entry) *Node { return &Node{Entry: e} }

// DefaultDir returns the entry of an implied directory: no entry of a layer is about it.
func DefaultDir(path string) entry.Entry {
	return entry.Entry{Path: path, Type: entry.Dir, Mode: 0o755, Implied: true}
}

// Find returns the node at a path, nil if there is none.
func (t *Node) Find(path string) *Node {
	if path == "." {
		return t
	}
	for name := range strings.SplitSeq(path, "/") {
		if t = t.Kids[name]; t == nil {
			return nil
		}
	}
	return t
}

// Make returns the node at a path. It makes the node and its parents if they are missing.
func (t *Node) Make(path string) *Node {
	if path == "." {
		return t
	}
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		name := path[strings.LastIndexByte(path[:i], '/')+1 : i]
		kid := t.Kids[name]
		if kid == nil {
			kid = &Node{Entry: DefaultDir(path[:i])}
			if t.Kids == nil {
				t.Kids = map[string]*Node{}
			}
			t.Kids[name] = kid
		}
		t = kid
	}
	return t
}

// Names returns the sorted names in a directory.
func (t *Node) Names() []string { return slices.Sorted(maps.Keys(t.Kids)) }

// Entries returns the entries of the tree, sorted by the bytes of their paths, "." first.
func (t *Node) Entries() []*entry.Entry {
	var es []*entry.Entry
	var walk func(*Node)
	walk = func(t *Node) {
		es = append(es, &t.Entry)
		for _, k := range t.Kids {
			walk(k)
		}
	}
	walk(t)
	slices.SortFunc(es, func(a, b *entry.Entry) int { return entry.ComparePaths(a.Path, b.Path) })
	return es
}

// SetOwner sets the owner of all nodes.
func (t *Node) SetOwner(uid, gid uint32) {
	t.Entry.UID, t.Entry.GID = uid, gid
	for _, k := range t.Kids {
		k.SetOwner(uid, gid)
	}
}
