package tarlayer

import (
	"path"
	"strconv"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// order records what the entries of the tar did, one after the other. Where a path leads may depend on what the layers
// below have, so that the same entries have another result above another parent. See Result.Ordered.
type order struct {
	// nodes has for each entry, in the order of the tar, the node that it made or described, the directory of a
	// whiteout, or nil. A layer may have a million entries.
	nodes []*[nodesPerChunk]*Node
	count int
	// headers are the headers, by entry, of entries whose node has another inode: of hard links, and of directories
	// that were described again.
	headers map[int32]*Inode
	// firstAttrs has the attributes of inodes before the header of a hard link gave them others.
	firstAttrs map[*Inode]*Inode
	// paths are the paths in the tar, by entry, of entries whose node has another path, and of whiteouts without a
	// node.
	paths map[int32]string
	// markers are the names, by entry, that whiteouts remove from the directory that is their node; "" for an opaque
	// marker.
	markers map[int32]string
	// dependent is true if what an entry so far did depends on the layers below: a directory was only implied, or a
	// hard link may lead to a lower layer.
	dependent bool
	// rewritten is true if the final tree does not show what the entries did: one removed what another had made,
	// followed a symlink, or is a hard link whose target depends on the layers below.
	rewritten bool
}

const nodesPerChunk = 512

// next makes room for what the next entry does.
func (o *order) next() {
	if o.count%nodesPerChunk == 0 {
		o.nodes = append(o.nodes, new([nodesPerChunk]*Node))
	}
	o.count++
}

// at returns the place of the node of entry i, from 0.
func (o *order) at(i int) **Node { return &o.nodes[i/nodesPerChunk][i%nodesPerChunk] }

// recordNode records the node that the current entry made or described.
func (x *reader) recordNode(n *Node, header *Inode) {
	*x.order.at(x.order.count - 1) = n
	if n.Inode != header {
		x.recordHeader(x.seq, header)
	}
}

// recordHeader records the header of an entry apart from its node.
func (x *reader) recordHeader(seq int32, header *Inode) {
	if x.order.headers == nil {
		x.order.headers = map[int32]*Inode{}
	}
	x.order.headers[seq] = header
	x.memory += entryMemory / 2
}

// recordPath records the path that the current entry has in the tar.
func (x *reader) recordPath(path string) {
	if x.order.paths == nil {
		x.order.paths = map[int32]string{}
	}
	x.order.paths[x.seq] = strings.Clone(path)
	x.memory += int64(len(path)) + entryMemory/2
}

// recordMarker records a whiteout, or an opaque marker if hidden is empty, of the directory dir. dir is nil if the path
// parent leads there only through a symlink, or not at all in this layer.
func (x *reader) recordMarker(parent, hidden string, dir *Node) {
	repeated := false
	if dir != nil {
		_, repeated = dir.whiteouts[hidden]
	}
	x.order.rewritten = x.order.rewritten || dir == nil || repeated || hidden == ""
	switch {
	case dir != nil:
		*x.order.at(x.order.count - 1) = dir
		if x.order.markers == nil {
			x.order.markers = map[int32]string{}
		}
		x.order.markers[x.seq] = strings.Clone(hidden)
	case hidden == "":
		x.recordPath(path.Join(parent, entry.OpaqueMarker))
	default:
		x.recordPath(path.Join(parent, hidden))
	}
}

// recordFirstAttrs records the attributes of an inode that is about to get those of a hard link's header.
func (x *reader) recordFirstAttrs(ino *Inode) {
	if x.order.firstAttrs[ino] != nil {
		return
	}
	if x.order.firstAttrs == nil {
		x.order.firstAttrs = map[*Inode]*Inode{}
	}
	first := *ino
	x.order.firstAttrs[ino] = &first
	x.memory += entryMemory
}

// resolve returns the place of a path in what this layer has so far.
func (x *reader) resolve(p string) (place, string) {
	at, reason := resolve(x.root, p, !x.order.dependent)
	if at.loop { // unless the parent leads it elsewhere, the fix-up refuses the layer
		x.order.rewritten = true
	}
	return at, reason
}

// setAside sets the files at and below n aside, because it is about to be removed although they may have other paths
// above some parent. It reports whether nothing is left at n.
func (x *reader) setAside(n *Node) (bool, error) {
	if !x.order.dependent {
		return false, nil
	}
	if n.IsDir() {
		for _, c := range n.children {
			if _, err := x.setAside(c); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	if n.Inode.Type != entry.File || n.Inode.aside != 0 {
		return false, nil
	}
	moved, err := x.w.SetAside(n, asideName(n.seq))
	if moved {
		n.Inode.aside = n.seq
	}
	return moved, err
}

// asideName returns the name of the file that an entry made and that was set aside.
func asideName(seq int32) string { return strconv.Itoa(int(seq)) }

// finishOrder decides whether the order matters, and drops those files set aside that the tree has under another name.
func (x *reader) finishOrder(r *Result) error {
	if !x.order.dependent || !x.order.rewritten {
		return nil
	}
	r.Ordered, r.NeedsFixup = true, true
	o := x.order // a copy, so that the result does not keep the reader in memory
	r.order = &o
	for i := range x.order.count {
		ino := x.order.header(i)
		if ino == nil || ino.aside == 0 {
			continue
		}
		if ino.names == 0 {
			r.Size += diskUsage(ino)
			r.Inodes++
			continue
		}
		if err := x.w.DropAside(asideName(ino.aside)); err != nil {
			return err
		}
		ino.aside = 0
	}
	return nil
}

// header returns the header of entry i, from 0; nil for a whiteout.
func (o *order) header(i int) *Inode {
	n, seq := *o.at(i), int32(i+1)
	if _, marker := o.markers[seq]; marker || n == nil {
		return nil
	}
	if h := o.headers[seq]; h != nil {
		return h
	}
	return n.Inode
}

// Step is what one entry of the tar means, with the path that the tar has, cleaned, wherever it leads.
type Step struct {
	// Entry has what the header says. Whiteout is a whiteout of the path, or, if Opaque is set, of all in the
	// directory of that path. Target of a Link is the path in the tar. Seq is the position in the tar. Inode is
	// empty.
	entry.Entry
	// Made is the path of the inode that the entry made, below the directory that was extracted to: the first one in
	// byte order. It is empty for directories and links, and if another entry removed the inode.
	Made string
	// Aside is the name under which the Writer keeps the file's content, if another entry removed the file.
	Aside string
	// Omitted reports that the entry is a device that an unprivileged extraction leaves out.
	Omitted bool
}

// Steps calls visit for every entry of the tar in its order, if the result is Ordered, and returns the first error.
func (r *Result) Steps(visit func(*Step) error) error {
	if !r.Ordered {
		return nil
	}
	first := map[*Inode]*Node{}
	l := lister{visit: func(*entry.Entry) error { return nil }, first: first, all: true}
	if err := l.content(r.root); err != nil {
		return err
	}
	for i := range r.order.count {
		s, ok := r.order.step(i, first)
		if !ok {
			continue
		}
		if err := visit(&s); err != nil {
			return err
		}
	}
	return nil
}

// step returns the step of entry i, from 0. first has the first name of each inode in the tree. ok is false for an
// entry that did nothing.
func (o *order) step(i int, first map[*Inode]*Node) (s Step, ok bool) {
	n, seq := *o.at(i), int32(i+1)
	recorded, hasPath := o.paths[seq]
	hidden, marker := o.markers[seq]
	switch {
	case marker:
		s.Type, s.Opaque, s.Path = entry.Whiteout, hidden == "", n.Path()
		if hidden != "" {
			s.Path = strings.TrimPrefix(s.Path+"/"+hidden, "./")
		}
	case n != nil:
		ino := o.header(i)
		if s.Entry = ino.Entry(); o.firstAttrs[ino] != nil {
			s.Entry = o.firstAttrs[ino].Entry()
		}
		if s.Path = recorded; !hasPath {
			s.Path = n.Path()
		}
		s.Omitted = ino.omitted
		if at := first[ino]; at != nil && ino.Type != entry.Dir && ino.Type != entry.Link {
			s.Made = at.Path()
		} else if ino.aside != 0 {
			s.Aside = asideName(ino.aside)
		}
	case hasPath:
		s.Type, s.Path = entry.Whiteout, recorded
		if dir, base := path.Split(recorded); base == entry.OpaqueMarker { // a removed name may end with the marker
			s.Opaque, s.Path = true, strings.TrimSuffix(dir, "/")
		}
	default:
		return s, false
	}
	s.Seq = i + 1
	return s, true
}
