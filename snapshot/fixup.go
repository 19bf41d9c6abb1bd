package snapshot

import (
	"context"
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// plan says what a fix-up holds: what a layer, unpacked without knowledge of its parent, has to show differently above
// this parent so that the stack is what applying the tars one after the other gives (docs/adr/0003-layer-application.md).
type plan struct {
	layer  *tree
	parent *merged
	out    *tree                      // nodes that were not emitted are directories on the way to those that were
	drops  []dropped                  // directories of the layer that are not to be seen, unless something of the fix-up lands in them
	copies map[string]source          // by path in out: where a node's content comes from
	moved  map[string]map[string]bool // by inode of the layer: its names that landed elsewhere
	links  map[inode]*linkGroup
	// lenient plans leave out links to what is not below: without root's full rights layers have no devices.
	lenient            bool
	outBytes, outAsked int64 // what out takes, and what was asked for
	// interrupted returns why planning has to end, if it has to. It is called for every node that is looked at.
	interrupted func() error
}

// dropped is a directory of the layer, and what the parent, where there is something, has in its place.
type dropped struct {
	dir   *tree
	at    string // the node's path
	below *found
}

// source is a node to copy.
type source struct {
	elem *element
	path string
}

// planFixup finds out what the layer, with these entries, needs above the parent. self is the layer's own directory.
// The plan is empty when it needs nothing.
//
// The time is proportional to the entries of the layer and of the parent, and to the length of their paths.
func planFixup(ctx context.Context, entries entrySource, self *element, parent *merged, lenient bool,
	grow func(bytes int64) error,
) (*plan, error) {
	layer, err := newLayerTree(entries, grow)
	if err != nil {
		return nil, err
	}
	x := &plan{
		layer: layer, parent: parent, out: newRoot(defaultDir(".")),
		copies: map[string]source{}, moved: map[string]map[string]bool{}, links: map[inode]*linkGroup{}, lenient: lenient,
	}
	interrupted := everyFew(ctx)
	x.interrupted = func() error {
		if err := x.growOut(grow); err != nil {
			return err
		}
		return interrupted()
	}
	if err := x.walk(self, x.layer, ".", where{own: ".", bare: x.layer.entry.Opaque}); err != nil {
		return nil, err
	}
	if err := x.keepTogether(entries, self); err != nil {
		return nil, err
	}
	if err := x.emitLinks(); err != nil {
		return nil, err
	}
	if err := x.drop(x.drops); err != nil {
		return nil, err
	}
	if err := x.carry(x.out); err != nil {
		return nil, err
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
	own   string // its path in the layer
	moved bool   // a symbolic link of the parent leads its content to another path
	bare  bool   // nothing of the parent is below
	again bool   // what the layer has at its own place goes into the fix-up as well
}

// maxOut bounds the memory of what a fix-up holds. The paths in it may be longer than those of the layer.
const maxOut = 192 << 20

// growOut asks for the memory that the fix-up's tree has taken.
func (x *plan) growOut(grow func(bytes int64) error) error {
	if x.outBytes <= x.outAsked {
		return nil
	}
	if x.outBytes > maxOut {
		err := fmt.Errorf("fix-up: more than %d bytes of entries: %w", int64(maxOut), errdefs.ErrFailedPrecondition)
		return cause.Mark(err, cause.LayerInvalid, "")
	}
	const step = 256 << 10
	asked := (x.outBytes - x.outAsked + step) / step * step
	x.outAsked += asked
	return grow(asked)
}

// entryAt is a node's entry with its path in the layer.
func entryAt(n *tree, path string) unpack.Entry {
	e := n.entry
	e.Path = path
	return e
}

func (x *plan) empty() bool { return len(x.out.kids) == 0 }

// facts is the digest over all that decides the fix-up's content.
func (x *plan) facts(diffID digest.Digest) digest.Digest {
	d := digest.SHA256.Digester()
	fmt.Fprintf(d.Hash(), "%s\n", diffID)
	var buf []byte
	for _, shared := range x.out.entries() {
		e := *shared
		e.Hash, e.Seq = [16]byte{}, 0
		buf = appendEntry(buf[:0], &e)
		d.Hash().Write(buf)
		if s, ok := x.copies[e.Path]; ok {
			fmt.Fprintf(d.Hash(), "\n%q %q\n", s.elem.name, s.path)
		}
	}
	return d.Digest()
}

// walk looks at what the layer has in a directory; at is where that lands.
func (x *plan) walk(self *element, n *tree, at string, w where) error {
	if w.again {
		if n.repeated {
			return nil
		}
		n.repeated = true
	}
	for _, name := range n.names() {
		if err := x.interrupted(); err != nil {
			return err
		}
		kid := n.kids[name]
		if !w.moved && kid.entry.Type != unpack.Dir && kid.entry.Type != unpack.Link {
			continue
		}
		here, own := inside(at, name), inside(w.own, name)
		var err error
		switch {
		case kid.entry.Type == unpack.Dir:
			in := w
			in.own = own
			err = x.dir(self, kid, here, in)
		case kid.entry.Type == unpack.Link:
			err = x.link(&kid.entry, own, here)
		case kid.entry.Type == unpack.Whiteout:
			err = x.moveWhiteout(self, entryAt(kid, own), here)
		default:
			x.emitCopy(entryAt(kid, own), here, source{self, own})
			if kid.entry.Inode != "" {
				if x.moved[kid.entry.Inode] == nil {
					x.moved[kid.entry.Inode] = map[string]bool{}
				}
				x.moved[kid.entry.Inode][own] = true
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// moveWhiteout removes what the parent has at a path, not what the layer has there, unless it is a device.
func (x *plan) moveWhiteout(self *element, e unpack.Entry, here string) error {
	below, err := x.parent.lookup(here)
	if err != nil {
		return err
	}
	own := x.layer.find(here)
	switch {
	case e.Opaque && (own != nil || below != nil):
		e.Opaque = false
		x.emit(e, here)
	case below == nil:
	case own == nil || own.entry.Type == unpack.Whiteout || own.entry.Type == unpack.Dir && onlyWhiteouts(own):
		x.emit(e, here)
	case own.entry.Type == unpack.Dir:
		dir := own.entry
		dir.Path, dir.Opaque = "", true
		x.emit(dir, here)
		return x.repeat(self, own, here)
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
		x.emit(entryAt(n, w.own), here)
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
			x.drops = append(x.drops, dropped{n, w.own, below})
		}
		return nil
	}
	if w.moved {
		x.out.make(here) // carry knows its attributes
	}
	w.bare = true
	return x.walk(self, n, here, w)
}

// repeat puts what the layer itself has in a directory into the fix-up, where an opaque directory would hide it. Once is
// enough, however many symbolic links lead there or above it.
func (x *plan) repeat(self *element, own *tree, at string) error {
	if own == nil {
		return nil
	}
	return x.walk(self, own, at, where{own: at, moved: true, bare: true, again: true})
}

// drop hides directories, or those inside them where something is.
func (x *plan) drop(dirs []dropped) error {
	for _, d := range dirs {
		if err := x.interrupted(); err != nil {
			return err
		}
		at := d.at
		switch there := x.out.find(at); {
		case d.dir.entry.Type != unpack.Dir:
		case there == nil && d.below != nil:
			x.emitCopy(*d.below.entry, at, source{&x.parent.elems[d.below.elem], at})
		case there == nil:
			x.emit(unpack.Entry{Type: unpack.Whiteout}, at)
		case there.entry.Type == unpack.Dir:
			for name, k := range d.dir.kids {
				if err := x.drop([]dropped{{dir: k, at: path.Join(at, name)}}); err != nil {
					return err
				}
			}
		}
	}
	return nil
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
		if err := x.repeat(self, x.layer.find(to), to); err != nil {
			return err
		}
	}
	return x.walk(self, n, to, where{own: w.own, moved: true, bare: n.entry.Opaque || !isDir})
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
	if unpack.Reserved(to) {
		return "", false, fmt.Errorf("path %q: leads to %q, a name of whiteouts: %w", link, to, unpack.ErrInvalidLayer)
	}
	f, err := x.parent.lookup(to)
	return to, err == nil && (f == nil || f.entry.Type == unpack.Dir || !onlyWhiteouts(n)), err
}

// onlyWhiteouts reports whether nothing below a directory of the layer adds anything. The layer's tree does not change,
// so that each directory is looked at once.
func onlyWhiteouts(n *tree) bool {
	if n.adds == unknown {
		n.adds = no
		for _, k := range n.kids {
			if !isMarker(k) && !(k.entry.Type == unpack.Dir && k.entry.Implied && onlyWhiteouts(k)) {
				n.adds = yes
				break
			}
		}
	}
	return n.adds == no
}

// isMarker reports whether a node is a whiteout that is no entry of its own: it makes no directories that it lies in.
func isMarker(n *tree) bool { return n.entry.Type == unpack.Whiteout && !n.entry.Opaque }

// emit puts a node into the fix-up, unless the layer itself put something there later.
func (x *plan) emit(e unpack.Entry, at string) bool {
	if own := x.layer.find(at); own != nil && own.entry.Type != unpack.Whiteout && e.Path != at && e.Seq > 0 && own.entry.Seq > e.Seq {
		return false
	}
	if other := x.out.find(at); other != nil && e.Seq > 0 && other.entry.Seq > e.Seq {
		return false // two symbolic links lead there, and this came first
	}
	e.Path, e.Implied, e.Inode = at, false, ""
	x.outBytes += nodeMemory + 2*int64(len(at))
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

// carry gives the directories that are only on the way the attributes that they have without the fix-up.
func (x *plan) carry(n *tree) error {
	for _, k := range n.kids {
		if err := x.interrupted(); err != nil {
			return err
		}
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
		e.Path = at
	} else if f, err := x.parent.lookup(at); err != nil {
		return e, err
	} else if f != nil && f.entry.Type == unpack.Dir {
		e = *f.entry
	}
	e.Implied, e.Opaque = false, false
	return e, nil
}
