package tarlayer

import (
	"iter"
	"maps"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Inode has the fields of an Entry that belong to the inode, in as little space as possible, because a layer may have a
// million inodes. Several nodes may share an inode: hard links.
type Inode struct {
	Target               string            // of a symlink or Link
	Xattrs               map[string]string // inodes may share a map: it must not be changed
	Sec, Size            int64             // modification time; size of a file in bytes
	Rdev                 uint64            // of a device, as entry.Device returns it
	Hash                 [16]byte          // XXH3-128 of a file's content
	Mode, UID, GID, Nsec uint32
	names                uint32 // the number of its names in the final tree
	Ticket               uint32 // for the Writer, which may keep a number here
	aside                int32  // the entry by which it was set aside; 0 if it was not
	Type                 entry.Type
	omitted              bool // a device that is not made: all its names are absent
}

// Entry returns the inode's part of an Entry.
func (i *Inode) Entry() entry.Entry {
	return entry.Entry{
		Type: i.Type, Mode: i.Mode, UID: i.UID, GID: i.GID, Sec: i.Sec, Nsec: int64(i.Nsec), Size: i.Size, Rdev: i.Rdev,
		Target: i.Target, Xattrs: i.Xattrs, Hash: i.Hash,
	}
}

// written reports whether the Writer made the inode.
func (i *Inode) written() bool { return i.Type != entry.Link && !i.omitted }

// Node is one path of the layer. A Writer may keep nodes, and use them as keys, until they are removed.
type Node struct {
	name      string
	parent    *Node // nil for the root
	Inode     *Inode
	children  map[string]*Node
	whiteouts map[string]whiteout // of names in this directory
	seq       int32               // of the entry that made it
	length    uint16              // of the path, at most maxPath
	implied   bool
	marked    bool // has an opaque marker
	// replaced: the layer had something else at this path before, which hid the lower layers' content of the path.
	replaced bool
	// startsEmpty: the directory shows nothing of what lower layers have at this path.
	startsEmpty bool
	// whiteoutsOnly: an implied directory that contains only whiteouts. While the layer is read, it means that a
	// whiteout made the directory; other entries may still follow.
	whiteoutsOnly bool
}

// Name returns the last component of the path.
func (n *Node) Name() string { return n.name }

// Parent returns the directory that n lies in, nil for the root.
func (n *Node) Parent() *Node { return n.parent }

// IsDir reports whether the node is a directory.
func (n *Node) IsDir() bool { return n.Inode.Type == entry.Dir }

// Opaque reports whether the directory hides all that lower layers have in it.
func (n *Node) Opaque() bool { return n.marked || n.replaced }

// Whiteouts returns the names in the directory that the layer hides, in no order.
func (n *Node) Whiteouts() iter.Seq[string] { return maps.Keys(n.whiteouts) }

// Path returns the clean path relative to the root, "." for the root.
func (n *Node) Path() string {
	if n.parent == nil {
		return "."
	}
	return n.build(int(n.length), nil)
}

// PathFrom returns the path of n relative to a directory above it.
func (n *Node) PathFrom(above *Node) string {
	if above.parent == nil {
		return n.Path()
	}
	return n.build(int(n.length-above.length-1), above)
}

// build returns the path of n relative to a directory above it, nil for the root. The path has size bytes.
func (n *Node) build(size int, above *Node) string {
	buf := make([]byte, size)
	for end := size; n.parent != nil && n != above; n = n.parent {
		end -= len(n.name)
		copy(buf[end:], n.name)
		if end > 0 {
			end--
			buf[end] = '/'
		}
	}
	return string(buf)
}

// child adds a node to n, and replaces any other of that name.
func (n *Node) child(name string, ino *Inode) *Node {
	c := &Node{name: strings.Clone(name), parent: n, length: uint16(n.lengthOf(len(name))), Inode: ino}
	if n.children == nil {
		n.children = make(map[string]*Node)
	}
	n.children[c.name] = c
	return c
}

// lengthOf returns the length of the path of an entry in n whose name has this length.
func (n *Node) lengthOf(name int) int {
	if n.parent == nil {
		return name
	}
	return int(n.length) + 1 + name
}

// whiteout is what makes a name absent.
type whiteout struct {
	seq int32 // position in the tar
	// device: the entry of the tar is a device that is not made. It takes the place of what the layer had at the name
	// before. A marker, in contrast, removes nothing of its own layer.
	device bool
}

// hide adds a whiteout of a name in the directory n.
func (n *Node) hide(name string, w whiteout) {
	if n.whiteouts == nil {
		n.whiteouts = make(map[string]whiteout)
	}
	n.whiteouts[strings.Clone(name)] = w
}

// within reports whether n is top or lies below it.
func (n *Node) within(top *Node) bool {
	for ; n != nil; n = n.parent {
		if n == top {
			return true
		}
	}
	return false
}
