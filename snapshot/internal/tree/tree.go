package tree

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Node is a node of a directory tree in memory: the tree below it, or a whole tree if it is the root.
type Node struct {
	Entry entry.Entry
	Kids  map[string]*Node // by name
	Adds  Answer           // whether an entry below the directory adds anything; set by package overlay
}

// Answer caches whether something is true of a node.
type Answer byte

// The answers. Unknown means that it was not computed yet.
const (
	Unknown Answer = iota
	Yes
	No
)

// NodeMemory is the number of bytes that a node takes, with its element in Kids and without its strings.
const NodeMemory = 256

// Read reads a list into memory. Because a list may have a million entries, Path of each entry is only its base name,
// and Inode is the ShortName of its group. Read calls grow with the bytes by which the tree grows, 256 KiB at a time,
// and returns an error of grow.
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
				name = strings.Clone(name) // so that the map does not keep the whole path in memory
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

// ShortName returns a name of at most 64 bytes for a group of hard links. The full name is a path, which may be long,
// and each entry of the group has it.
func ShortName(inode string) string {
	if len(inode) <= 64 {
		return inode
	}
	return digest.FromString(inode).Encoded()
}

// New returns a tree that consists of one node.
func New(e entry.Entry) *Node { return &Node{Entry: e} }

// DefaultDir returns the entry of an implied directory, that is, one without an entry in the layer.
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
