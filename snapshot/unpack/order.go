package unpack

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// order remembers what the entries of the tar did, one after the other. Where a path leads may depend on what the
// layers below have, so that the same entries give another result above another parent. See Result.Ordered.
type order struct {
	// What each entry did, in the order of the tar: the node that it made or described, the directory of a whiteout, or
	// nil. A layer may have a million of them.
	chunks []*[opsPerChunk]*node
	count  int
	// headers are those of entries whose node has another inode: of hard links, and of directories described again.
	headers map[int32]*inode
	// before has the first attributes of inodes: those before the header of a hard link gave them others.
	before map[*inode]*inode
	// paths are the paths in the tar of entries whose node has another path, and of whiteouts without a node.
	paths map[int32]string
	// markers are the names that whiteouts remove from the directory that is their node; "" for an opaque marker.
	markers map[int32]string
	// depends is true if what an entry so far did depends on the layers below: a directory was only implied, or a hard
	// link may lead to a lower layer.
	depends bool
	// odd is true if the final tree does not show what the entries did: one took away what another had made, followed a
	// symlink, or is a hard link whose target depends on the layers below.
	odd bool
	// aside is the directory of the files that were taken away, nil until there is one.
	aside *os.File
}

const opsPerChunk = 512

// next makes room for what the next entry does.
func (o *order) next() {
	if o.count%opsPerChunk == 0 {
		o.chunks = append(o.chunks, new([opsPerChunk]*node))
	}
	o.count++
}

func (o *order) at(i int) **node { return &o.chunks[i/opsPerChunk][i%opsPerChunk] }

// note keeps what the current entry did.
func (x *extractor) note(n *node, header *inode) {
	*x.order.at(x.order.count - 1) = n
	if n.ino != header {
		x.keepHeader(x.seq, header)
	}
}

// keepHeader keeps the header of an entry apart from its node.
func (x *extractor) keepHeader(seq int32, header *inode) {
	if x.order.headers == nil {
		x.order.headers = map[int32]*inode{}
	}
	x.order.headers[seq] = header
	x.memory += entryMemory / 2
}

// say keeps the path that the current entry has in the tar.
func (x *extractor) say(path string) {
	if x.order.paths == nil {
		x.order.paths = map[int32]string{}
	}
	x.order.paths[x.seq] = strings.Clone(path)
	x.memory += int64(len(path)) + entryMemory/2
}

// sayMarker keeps a whiteout, or an opaque marker if hidden is empty: in dir, or, if that is nil, in the directory to
// which the path leads.
func (x *extractor) sayMarker(parent, hidden string, dir *node) {
	again := false
	if dir != nil {
		_, again = dir.whiteouts[hidden]
	}
	x.order.odd = x.order.odd || dir == nil || again || hidden == ""
	switch {
	case dir != nil:
		*x.order.at(x.order.count - 1) = dir
		if x.order.markers == nil {
			x.order.markers = map[int32]string{}
		}
		x.order.markers[x.seq] = strings.Clone(hidden)
	case hidden == "":
		x.say(path.Join(parent, entry.OpaqueMarker))
	default:
		x.say(path.Join(parent, hidden))
	}
}

// resolve finds the place of a path in what this layer has so far.
func (x *extractor) resolve(p string) (place, string) {
	at, reason := resolve(x.root, p, !x.order.depends)
	if at.loop { // unless the parent leads it elsewhere, the fix-up refuses the layer
		x.order.odd = true
	}
	return at, reason
}

// keepBefore keeps the attributes of an inode that is about to get those of a hard link's header.
func (x *extractor) keepBefore(ino *inode) {
	if x.order.before[ino] != nil {
		return
	}
	if x.order.before == nil {
		x.order.before = map[*inode]*inode{}
	}
	before := *ino
	x.order.before[ino] = &before
	x.memory += entryMemory
}

// setAside moves the files at and below n out of the tree, because it is about to be removed while above some parent
// they have other paths. It reports whether nothing is left at n.
func (x *extractor) setAside(n *node) (bool, error) {
	if !x.order.depends || x.opts.Aside == nil {
		return false, nil
	}
	if n.isDir() {
		for _, c := range n.children {
			if _, err := x.setAside(c); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	if n.ino.Type != entry.File || n.ino.aside != 0 {
		return false, nil
	}
	if x.order.aside == nil {
		dir, err := x.opts.Aside()
		if err != nil {
			return false, fmt.Errorf("layer: files set aside: %w", err)
		}
		x.order.aside = dir
	}
	from, err := x.dirs.fd(n.parent)
	if err != nil {
		return false, err
	}
	n.ino.aside = n.seq
	if err := unix.Renameat(from, n.name, int(x.order.aside.Fd()), asideName(n.seq)); err != nil {
		return false, ioError(n.path(), "set aside", err)
	}
	return true, nil
}

// asideName is the name of a file that was set aside.
func asideName(seq int32) string { return strconv.Itoa(int(seq)) }

func (o *order) close() {
	if o.aside != nil {
		o.aside.Close()
	}
}

// finishOrder decides whether the order matters, and drops the files set aside that the tree has under another name.
func (x *extractor) finishOrder(r *Result) error {
	if !x.order.depends || !x.order.odd {
		return nil
	}
	r.Ordered, r.Needs = true, true
	o := x.order // without the rest of the extractor
	r.order = &o
	for i := range x.order.count {
		ino := x.order.header(i)
		if ino == nil || ino.aside == 0 {
			continue
		}
		if ino.names == 0 {
			r.Size += usage(ino)
			r.Inodes++
			continue
		}
		if err := unix.Unlinkat(int(x.order.aside.Fd()), asideName(ino.aside), 0); err != nil {
			return fmt.Errorf("layer: files set aside: %w", err)
		}
		ino.aside = 0
	}
	return nil
}

// header is that of an entry that is no whiteout, otherwise nil.
func (o *order) header(i int) *inode {
	n, seq := *o.at(i), int32(i+1)
	if _, marker := o.markers[seq]; marker || n == nil {
		return nil
	}
	if h := o.headers[seq]; h != nil {
		return h
	}
	return n.ino
}

// Step is what one entry of the tar asks for, with the path that the tar has, cleaned, whatever it leads to.
type Step struct {
	// Entry has what the header says. Whiteout is a whiteout of the path, or, if Opaque is set, of all in the directory of
	// that path. Target of a Link is the path in the tar. Seq is the position in the tar, Inode is empty.
	entry.Entry
	// Made is a path, below the directory that was extracted to, where the inode lies that the entry made: the first one,
	// in byte order. Empty for directories and links, and when another entry took the inode away.
	Made string
	// Aside is the name of a file's content in the directory of Options.Aside, when another entry took it away.
	Aside string
	// Omitted means that the entry is a device that an unprivileged extraction leaves out.
	Omitted bool
}

// Steps calls visit for every entry of the tar in its order, if the result is Ordered, and returns the first error.
func (r *Result) Steps(visit func(*Step) error) error {
	if !r.Ordered {
		return nil
	}
	first := map[*inode]*node{}
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

func (o *order) step(i int, first map[*inode]*node) (s Step, ok bool) {
	n, seq := *o.at(i), int32(i+1)
	text, told := o.paths[seq]
	hidden, marker := o.markers[seq]
	switch {
	case marker:
		s.Type, s.Opaque, s.Path = entry.Whiteout, hidden == "", n.path()
		if hidden != "" {
			s.Path = strings.TrimPrefix(s.Path+"/"+hidden, "./")
		}
	case n != nil:
		ino := o.header(i)
		if s.Entry = ino.entry(); o.before[ino] != nil {
			s.Entry = o.before[ino].entry()
		}
		if s.Path = text; !told {
			s.Path = n.path()
		}
		s.Omitted = ino.omitted
		if at := first[ino]; at != nil && ino.Type != entry.Dir && ino.Type != entry.Link {
			s.Made = at.path()
		} else if ino.aside != 0 {
			s.Aside = asideName(ino.aside)
		}
	case told:
		s.Type, s.Path = entry.Whiteout, text
		if dir, base := path.Split(text); base == entry.OpaqueMarker { // a name that a whiteout removes may end like it
			s.Opaque, s.Path = true, strings.TrimSuffix(dir, "/")
		}
	default:
		return s, false
	}
	s.Seq = i + 1
	return s, true
}
