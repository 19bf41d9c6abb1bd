package unpack

import (
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// inode is what names lead to: what an Entry has of it, in as little space as it takes. A layer may have a million of
// them.
type inode struct {
	Target               string
	Xattrs               map[string]string // others may have the same one
	Sec, Size            int64
	Rdev                 uint64
	Hash                 [16]byte
	Mode, UID, GID, Nsec uint32
	names                uint32 // in the final tree
	gathered             uint32 // among the small files it is this one; 0 if it is none
	aside                int32  // the number of the entry by which it was set aside; 0 if it was not
	Type                 entry.Type
	omitted              bool // a device that is not made: all its names are absent
}

// entry is the inode's part of an Entry.
func (i *inode) entry() entry.Entry {
	return entry.Entry{
		Type: i.Type, Mode: i.Mode, UID: i.UID, GID: i.GID, Sec: i.Sec, Nsec: int64(i.Nsec), Size: i.Size, Rdev: i.Rdev,
		Target: i.Target, Xattrs: i.Xattrs, Hash: i.Hash,
	}
}

// onDisk tells whether the inode was created.
func (i *inode) onDisk() bool { return i.Type != entry.Link && !i.omitted }

// node is one path of the layer. The tree of nodes mirrors what is on disk, so that paths are resolved by what this layer
// holds; the kernel is then asked for the resolved path and told to refuse any symlink in it.
type node struct {
	name      string
	parent    *node // nil for the root
	ino       *inode
	children  map[string]*node
	whiteouts map[string]whiteout // of names in this directory
	seq       int32
	length    uint16 // of the path, at most maxPath
	implied   bool
	marked    bool // has an opaque marker
	fresh     bool // the layer had something else at this path before, which hid all below it
	// settled: the directory is a new one, whatever the layers below have at its path.
	settled bool
	// bare: an implied directory that only whiteouts asked for. While the layer is read this says what made the directory; at
	// the end, that nothing else came into it.
	bare bool
}

func (n *node) isDir() bool { return n.ino.Type == entry.Dir }

// path of the node, "." for the root.
func (n *node) path() string {
	if n.parent == nil {
		return "."
	}
	buf := make([]byte, n.length)
	end := len(buf)
	for ; n.parent != nil; n = n.parent {
		end -= len(n.name)
		copy(buf[end:], n.name)
		if end > 0 {
			end--
			buf[end] = '/'
		}
	}
	return string(buf)
}

// child adds a node under n, replacing any of that name.
func (n *node) child(name string, ino *inode) *node {
	c := &node{name: strings.Clone(name), parent: n, length: uint16(n.below(len(name))), ino: ino}
	if n.children == nil {
		n.children = make(map[string]*node)
	}
	n.children[c.name] = c
	return c
}

// below is the length of the path of a name of this length in the directory.
func (n *node) below(name int) int {
	if n.parent == nil {
		return name
	}
	return int(n.length) + 1 + name
}

// whiteout is what makes a name absent.
type whiteout struct {
	seq int32 // position in the tar
	// device: an entry of the tar is a device that is not made. It takes the place of what the name was before, in
	// contrast to a marker, which removes nothing of its own layer.
	device bool
}

// hide notes a whiteout of a name in the directory n.
func (n *node) hide(name string, w whiteout) {
	if n.whiteouts == nil {
		n.whiteouts = make(map[string]whiteout)
	}
	n.whiteouts[strings.Clone(name)] = w
}

// within reports whether n is top or lies in it.
func (n *node) within(top *node) bool {
	for ; n != nil; n = n.parent {
		if n == top {
			return true
		}
	}
	return false
}

// place is where a path leads: an existing directory and the components below it that the layer does not have.
type place struct {
	dir     *node
	missing []string
	// blocked: the first missing component is there, but neither a directory nor a symlink.
	blocked *node
	// followed: a symlink was on the way.
	followed bool
	// loop: too many symlinks were on the way, of which some may lead elsewhere above a parent. The place is then that of
	// the last one that is a component of the path itself, as if it were a file.
	loop bool
}

// Path resolution is bounded as in the kernel: by the number of symlinks, and, because their targets may be long, by the
// number of components.
const (
	maxSymlinks   = 40
	maxComponents = 8192
)

// resolve follows p, clean and relative to the root, through the symlinks of this layer. ".." of the root is the root, and
// absolute targets begin there. A ".." after a missing component takes that component back. sure is true if the path
// leads to the same place above every parent.
func resolve(root *node, p string, sure bool) (place, string) {
	at := place{dir: root}
	own := p              // what is left of p itself
	start, rest := at, "" // the last symlink that is a component of p, and what p has from there on
	links, steps := 0, 0
	for p != "" {
		var c string
		before, mine := p, len(p) <= len(own)
		c, p, _ = strings.Cut(p, "/")
		if mine {
			own = p
		}
		if steps++; steps > maxComponents {
			return stopped(start, rest, "too many components in symlinks", sure)
		}
		switch c {
		case "", ".":
			continue
		case "..":
			if n := len(at.missing); n > 0 {
				if at.missing = at.missing[:n-1]; n == 1 {
					at.blocked = nil
				}
			} else if at.dir.parent != nil {
				at.dir = at.dir.parent
			}
			continue
		}
		if len(at.missing) > 0 {
			at.missing = append(at.missing, c)
			continue
		}
		next := at.dir.children[c]
		switch {
		case next == nil:
			at.missing = append(at.missing, c)
		case next.isDir():
			at.dir = next
		case next.ino.Type == entry.Symlink:
			if mine {
				start, rest = place{dir: at.dir, blocked: next, followed: true, loop: true}, before
			}
			if links++; links > maxSymlinks {
				return stopped(start, rest, "too many levels of symlinks", sure)
			}
			at.followed = true
			target := next.ino.Target
			if strings.HasPrefix(target, "/") {
				at.dir = root
			}
			p = target + "/" + p
		default:
			at.missing, at.blocked = append(at.missing, c), next
		}
	}
	return at, ""
}

// stopped is what a path leads to that goes through too many symlinks. If it may lead elsewhere above a parent, the
// symlink at start, from which the path goes on with rest, is taken for a file.
func stopped(start place, rest, reason string, sure bool) (place, string) {
	if sure {
		return start, reason
	}
	start.missing = strings.Split(rest, "/")
	return start, ""
}
