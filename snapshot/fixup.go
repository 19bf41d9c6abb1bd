package snapshot

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// plan says what a fix-up holds: what a layer, unpacked without knowledge of its parent, has to show differently above
// this parent so that the stack is what applying the tars one after the other gives (docs/adr/0003-layer-application.md).
type plan struct {
	layer  *tree
	parent *merged
	out    *tree               // nodes that were not emitted are directories on the way to those that were
	drops  []dropped           // directories of the layer that are not to be seen, unless something of the fix-up lands in them
	copies map[string]source   // by path in out: where a node's content comes from
	moved  map[string][]string // by inode of the layer: its names that landed elsewhere
	links  map[inode]*linkGroup
	// lenient plans leave out links to what is not below: an ordinary user's layers have no devices.
	lenient bool
}

// dropped is a directory of the layer, and what the parent, where there is something, has in its place.
type dropped struct {
	dir   *tree
	below *found
}

// source is a node to copy.
type source struct {
	elem *element
	path string
}

// inode is one inode of the parent's stack.
type inode struct {
	elem int
	ino  uint64
}

// linkGroup is an inode of the parent to which the layer links.
type linkGroup struct {
	names []string     // in the merged view
	from  string       // the name that the layer links to
	attrs unpack.Entry // the last link's header
	node  unpack.Entry // as the parent has it
}

// planFixup finds out what the layer, with these entries, needs above the parent. self is the layer's own directory.
// The plan is empty when it needs nothing.
func planFixup(entries []unpack.Entry, self *element, parent *merged, lenient bool) (*plan, error) {
	x := &plan{
		layer: newTree(entries), parent: parent, out: newTree(nil),
		copies: map[string]source{}, moved: map[string][]string{}, links: map[inode]*linkGroup{}, lenient: lenient,
	}
	if err := x.walk(self, x.layer, ".", where{bare: x.layer.entry.Opaque}); err != nil {
		return nil, err
	}
	x.keepTogether(entries, self)
	if err := x.emitLinks(); err != nil {
		return nil, err
	}
	x.drop(x.drops)
	if err := x.carry(x.out); err != nil {
		return nil, err
	}
	if lenient {
		x.out.ownAll(uint32(os.Geteuid()), uint32(os.Getegid()))
	}
	return x, nil
}

// ownAll gives all nodes to an ordinary user.
func (t *tree) ownAll(uid, gid uint32) {
	t.entry.UID, t.entry.GID = uid, gid
	for _, k := range t.kids {
		k.ownAll(uid, gid)
	}
}

// where says how a directory of the layer relates to the parent.
type where struct {
	moved bool // a symbolic link of the parent leads its content to another path
	bare  bool // nothing of the parent is below
}

func (x *plan) empty() bool { return len(x.out.kids) == 0 }

// facts is the digest over all that decides the fix-up's content.
func (x *plan) facts(diffID digest.Digest) digest.Digest {
	d := digest.SHA256.Digester()
	fmt.Fprintf(d.Hash(), "%s\n", diffID)
	for _, e := range x.out.entries() {
		e.Hash, e.Seq = [16]byte{}, 0
		d.Hash().Write(appendEntry(nil, &e))
		if s, ok := x.copies[e.Path]; ok {
			fmt.Fprintf(d.Hash(), "\n%q %q\n", s.elem.name, s.path)
		}
	}
	return d.Digest()
}

// walk looks at what the layer has in a directory; at is where that lands.
func (x *plan) walk(self *element, n *tree, at string, w where) error {
	for _, name := range n.names() {
		kid, here := n.kids[name], path.Join(at, name)
		var err error
		switch {
		case kid.entry.Type == unpack.Dir:
			err = x.dir(self, kid, here, w)
		case kid.entry.Type == unpack.Link:
			err = x.link(kid.entry, here)
		case !w.moved:
		case kid.entry.Type == unpack.Whiteout:
			err = x.moveWhiteout(self, kid.entry, here)
		default:
			x.emitCopy(kid.entry, here, source{self, kid.entry.Path})
			if kid.entry.Inode != "" {
				x.moved[kid.entry.Inode] = append(x.moved[kid.entry.Inode], kid.entry.Path)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keepTogether has names of an inode of the layer come along with those that a symbolic link led elsewhere.
func (x *plan) keepTogether(entries []unpack.Entry, self *element) {
	for _, e := range entries {
		if moved := x.moved[e.Inode]; moved != nil && !slices.Contains(moved, e.Path) {
			x.emitCopy(e, e.Path, source{self, e.Path})
		}
	}
}

// moveWhiteout removes what the parent has at a path, not what the layer has there.
func (x *plan) moveWhiteout(self *element, e unpack.Entry, here string) error {
	below, err := x.parent.lookup(here)
	if err != nil || below == nil {
		return err
	}
	own := x.layer.find(here)
	switch {
	case own == nil || own.entry.Type == unpack.Whiteout || own.entry.Type == unpack.Dir && onlyWhiteouts(own):
		x.emit(e, here)
	case own.entry.Type == unpack.Dir:
		dir := own.entry
		dir.Path, dir.Opaque = "", true
		x.emit(dir, here)
		return x.walk(self, own, here, where{moved: true, bare: true})
	}
	return nil
}

// dir looks at one directory of the layer.
func (x *plan) dir(self *element, n *tree, here string, w where) error {
	var below *found
	if !w.bare {
		var err error
		if below, err = x.parent.lookup(here); err != nil {
			return err
		}
	}
	if n.entry.Implied {
		return x.implied(self, n, here, w, below)
	}
	if w.moved {
		x.emit(n.entry, here)
	}
	w.bare = n.entry.Opaque || below == nil || below.entry.Type != unpack.Dir
	return x.walk(self, n, here, w)
}

// implied looks at a directory that the tar has no entry for: it is what the parent has there.
func (x *plan) implied(self *element, n *tree, here string, w where, below *found) error {
	switch {
	case below != nil && below.entry.Type == unpack.Dir:
		e := *below.entry
		e.Opaque = n.entry.Opaque
		if w.moved && e.Opaque || !w.moved && difference(&e, &n.entry) != "" {
			e.Opaque = e.Opaque && w.moved // where it is not moved, the layer's own directory hides what is below
			x.emit(e, here)
		}
		w.bare = n.entry.Opaque
		return x.walk(self, n, here, w)
	case below != nil && below.entry.Type == unpack.Symlink:
		if to, ok, err := x.leadsTo(here, n); err != nil || ok {
			if err != nil {
				return err
			}
			return x.follow(self, n, here, to, w, below)
		}
	}
	if onlyWhiteouts(n) {
		// It removes what is not there: no directory comes of that (E13), and what is no directory stays.
		if !w.moved {
			x.drops = append(x.drops, dropped{n, below})
		}
		return nil
	}
	if w.moved {
		x.emit(n.entry, here)
	}
	w.bare = true
	return x.walk(self, n, here, w)
}

// drop hides directories, or those inside them where something is.
func (x *plan) drop(dirs []dropped) {
	for _, d := range dirs {
		at := d.dir.entry.Path
		switch there := x.out.find(at); {
		case d.dir.entry.Type != unpack.Dir:
		case there == nil && d.below != nil:
			x.emitCopy(*d.below.entry, at, source{&x.parent.elems[d.below.elem], at})
		case there == nil:
			x.emit(unpack.Entry{Type: unpack.Whiteout}, at)
		case there.entry.Type == unpack.Dir:
			for _, k := range d.dir.kids {
				x.drop([]dropped{{dir: k}})
			}
		}
	}
}

// follow puts what the layer has in a directory to where a symbolic link of the parent, which stays, leads.
func (x *plan) follow(self *element, n *tree, link, to string, w where, below *found) error {
	if !w.moved {
		x.emitCopy(*below.entry, link, source{&x.parent.elems[below.elem], link})
	}
	there, err := x.parent.lookup(to)
	if err != nil {
		return err
	}
	isDir := there != nil && there.entry.Type == unpack.Dir
	if n.entry.Opaque && isDir {
		e, err := x.shown(to)
		if err != nil {
			return err
		}
		e.Opaque = true
		x.emit(e, to)
		if own := x.layer.find(to); own != nil { // it would hide what the layer itself has there
			if err := x.walk(self, own, to, where{moved: true, bare: true}); err != nil {
				return err
			}
		}
	}
	return x.walk(self, n, to, where{moved: true, bare: n.entry.Opaque || !isDir})
}

// leadsTo resolves a symbolic link of the parent; ok says that a directory is there, or that what the layer has in it
// makes one there.
func (x *plan) leadsTo(link string, n *tree) (to string, ok bool, err error) {
	if to, err = x.parent.resolve(link); err != nil {
		if errdefs.IsInvalidArgument(err) {
			return "", false, nil // a loop leads nowhere: the directory replaces it
		}
		return "", false, err
	}
	f, err := x.parent.lookup(to)
	return to, err == nil && (f == nil || f.entry.Type == unpack.Dir || !onlyWhiteouts(n)), err
}

// onlyWhiteouts says that nothing below the directory adds anything.
func onlyWhiteouts(n *tree) bool {
	for _, k := range n.kids {
		switch {
		case k.entry.Type == unpack.Whiteout:
		case k.entry.Type == unpack.Dir && k.entry.Implied && onlyWhiteouts(k):
		default:
			return false
		}
	}
	return true
}

// emit puts a node into the fix-up, unless the layer itself put something there later.
func (x *plan) emit(e unpack.Entry, at string) bool {
	if own := x.layer.find(at); own != nil && own.entry.Type != unpack.Whiteout && e.Path != at && e.Seq > 0 && own.entry.Seq > e.Seq {
		return false
	}
	e.Path, e.Implied, e.Inode = at, false, ""
	x.out.make(at).entry = e
	return true
}

func (x *plan) emitCopy(e unpack.Entry, at string, from source) {
	group := e.Inode
	if x.emit(e, at) {
		x.copies[at] = from
		if group != "" {
			x.out.make(at).entry.Inode = from.elem.name + "/" + group // regrouped when it is built
		}
	}
}

// link notes a hard link to a path that only the parent has.
func (x *plan) link(e unpack.Entry, here string) error {
	var f *found
	dir, err := x.parent.resolve(path.Dir(e.Target))
	target := path.Join(dir, path.Base(e.Target))
	if err == nil {
		f, err = x.parent.lookup(target)
	}
	if err != nil && !errdefs.IsInvalidArgument(err) { // a loop leads to no file
		return err
	}
	if f == nil && x.lenient {
		return nil
	}
	if f == nil || f.entry.Type == unpack.Dir || x.hides(target) || strings.HasPrefix(target, here+"/") {
		return fmt.Errorf("hard link %q: no file %q in the layers below: %w", e.Path, e.Target, errdefs.ErrFailedPrecondition)
	}
	id := inode{f.elem, f.stat.Ino}
	g := x.links[id]
	if g == nil {
		g = &linkGroup{from: target, node: *f.entry}
		if g.names, err = x.namesOf(f, target); err != nil {
			return err
		}
		x.links[id] = g
	}
	g.names = append(g.names, here)
	if e.Seq >= g.attrs.Seq {
		g.attrs = e
	}
	return nil
}

// hides says whether the layer itself makes a directory on the way to the path opaque.
func (x *plan) hides(target string) bool {
	for t, rest := x.layer, target; t != nil; {
		if t.entry.Opaque {
			return true
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		t = t.kids[name]
	}
	return false
}

// namesOf lists the names that the inode of f has in the parent's view and that the layer leaves alone.
func (x *plan) namesOf(f *found, target string) ([]string, error) {
	all := []string{target}
	if f.stat.Nlink > 1 {
		var err error
		if all, err = namesOfInode(x.parent.elems[f.elem].root, f.stat.Ino); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, n := range all {
		if own := x.layer.find(n); own != nil && own.entry.Type != unpack.Link {
			continue
		}
		seen, err := x.parent.lookup(n)
		if err != nil {
			return nil, err
		}
		if seen != nil && seen.elem == f.elem && seen.stat.Ino == f.stat.Ino {
			names = append(names, n)
		}
	}
	return names, nil
}

// emitLinks puts the groups of links into the fix-up: every name of the inode, with the attributes of the last header.
func (x *plan) emitLinks() error {
	for id, g := range x.links {
		e := g.node
		e.Mode, e.UID, e.GID, e.Sec, e.Nsec = g.attrs.Mode, g.attrs.UID, g.attrs.GID, g.attrs.Sec, g.attrs.Nsec
		e.Xattrs = maps.Clone(e.Xattrs)
		for k, v := range g.attrs.Xattrs {
			if e.Type == unpack.File || !strings.HasPrefix(k, "user.") { // Linux has none there
				if e.Xattrs == nil {
					e.Xattrs = map[string]string{}
				}
				e.Xattrs[k] = v
			}
		}
		slices.Sort(g.names)
		g.names = slices.Compact(g.names)
		for _, n := range g.names {
			x.emit(e, n)
			x.copies[n] = source{&x.parent.elems[id.elem], g.from}
			x.out.make(n).entry.Inode = g.names[0]
		}
	}
	return nil
}

// carry gives the directories that are only on the way the attributes that they have without the fix-up.
func (x *plan) carry(n *tree) error {
	for _, k := range n.kids {
		if k.entry.Type != unpack.Dir {
			continue
		}
		if k.entry.Implied {
			e, err := x.shown(k.entry.Path)
			if err != nil {
				return err
			}
			k.entry = e
		}
		if err := x.carry(k); err != nil {
			return err
		}
	}
	return nil
}

// shown is the directory that layer and parent show at a path.
func (x *plan) shown(at string) (unpack.Entry, error) {
	e := defaultDir(at)
	own := x.layer.find(at)
	if own != nil && own.entry.Type == unpack.Dir && !own.entry.Implied {
		e = own.entry
	} else if f, err := x.parent.lookup(at); err != nil {
		return e, err
	} else if f != nil && f.entry.Type == unpack.Dir {
		e = *f.entry
	}
	e.Implied, e.Opaque = false, false
	return e, nil
}

// namesOfInode walks a directory for the names of one inode.
func namesOfInode(root *os.File, ino uint64) ([]string, error) {
	var names []string
	var walk func(dir *os.File, at string) error
	walk = func(dir *os.File, at string) error {
		list, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		slices.SortFunc(list, cmp.Compare)
		for _, n := range list {
			var st unix.Stat_t
			if err := unix.Fstatat(int(dir.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			switch {
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				sub, err := openDir(dir, n)
				if err != nil {
					return err
				}
				err = walk(sub, path.Join(at, n))
				sub.Close()
				if err != nil {
					return err
				}
			case st.Ino == ino:
				names = append(names, path.Join(at, n))
			}
		}
		return nil
	}
	top, err := openDir(root, ".")
	if err != nil {
		return nil, err
	}
	defer top.Close()
	return names, walk(top, "")
}
