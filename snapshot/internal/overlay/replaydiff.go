package overlay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// differ compares the tree of a replay with what overlay shows of the layer above the parent, and plans the difference.
type differ struct {
	*Plan
	r           *replay
	self, aside *Element
	emitted     []*simNode // inodes that are no directories, whose names all go into the fix-up
}

// replayed plans a fix-up by applying the layer's entries one after the other.
func (x *Plan) replayed(l Layer) error {
	r := newReplay(x.Parent, l.NewDir, x.lenient, x.grow)
	err := l.Steps(func(s *tarlayer.Step) error {
		if err := x.interrupted(); err != nil {
			return err
		}
		return r.step(s)
	})
	if err != nil {
		return err
	}
	d := differ{Plan: x, r: r, self: l.Self, aside: l.Aside}
	var lower *place
	if len(x.Parent.elems) > 0 && !x.layer.Entry.Opaque {
		lower = x.Parent.top
	}
	if err := d.dir(".", r.root, x.layer, lower); err != nil {
		return err
	}
	for _, n := range r.inodes {
		if n.changed {
			d.hold(n)
		}
	}
	if err := d.findNames(); err != nil {
		return err
	}
	for _, n := range d.emitted {
		if err := d.emitNames(n); err != nil {
			return err
		}
	}
	return d.attributes(x.Tree)
}

// listedMemory is what a name that was listed takes beside its string.
const listedMemory = 64

// dir compares a directory of the replay with what is shown there: what the layer has, l, and below it what the parent
// has, lower. Each is nil where nothing of it is shown.
func (d *differ) dir(at string, want *simNode, l *tree.Node, lower *place) error {
	names := map[string]struct{}{}
	for name := range want.kids {
		names[name] = struct{}{}
	}
	if l != nil {
		for name := range l.Kids {
			names[name] = struct{}{}
		}
	}
	if (want.below == nil) != (lower == nil) { // one of them has what else the parent has
		from := want.below
		if from == nil {
			from = lower
		}
		if err := d.Parent.list(from, names); err != nil {
			return err
		}
		var bytes int64
		for name := range names {
			bytes += listedMemory + int64(len(name))
		}
		if err := d.grow(bytes); err != nil {
			return err
		}
	}
	for name := range names {
		if err := d.interrupted(); err != nil {
			return err
		}
		if err := d.name(inside(at, name), name, want, l, lower); err != nil {
			return err
		}
	}
	return nil
}

// name compares one name of a directory.
func (d *differ) name(at, name string, dir *simNode, l *tree.Node, lower *place) error {
	k, err := d.r.kid(dir, name)
	if err != nil {
		return err
	}
	var own *tree.Node
	if l != nil {
		own = l.Kids[name]
	}
	if own != nil && own.Entry.Type == entry.Link {
		own = nil // nothing is on disk
	}
	var low *place
	if lower != nil && (own == nil || own.Entry.Type == entry.Dir && !own.Entry.Opaque) {
		if low, err = d.Parent.kid(lower, name); err != nil {
			return err
		}
	}
	if own != nil && low != nil && len(low.dirs) == 0 {
		low = nil // hidden by the layer's directory
	}
	switch {
	case k == nil || k.entry.Type == omitted:
		if low != nil || own != nil && own.Entry.Type != entry.Whiteout {
			return d.put(entry.Entry{Type: entry.Whiteout}, at)
		}
		return nil
	case k.isDir():
		return d.subdir(at, k, own, low)
	}
	if k.names = append(k.names, at); !d.shows(at, k.simNode, own, low) {
		d.hold(k.simNode)
	}
	return d.grow(int64(len(at)))
}

// subdir compares a directory with what is shown in its place.
func (d *differ) subdir(at string, k *simName, own *tree.Node, low *place) error {
	isDir := own != nil && own.Entry.Type == entry.Dir || own == nil && low != nil && len(low.dirs) > 0
	if isDir && own == nil && !k.own && len(k.kids) == 0 && k.below != nil {
		return nil // the parent's, which no entry came to
	}
	if err := d.r.readAttrs(k.simNode); err != nil {
		return err
	}
	e := k.entry
	e.Opaque = isDir && own == nil && k.below == nil // whose content is all in the fix-up
	differs := !isDir || e.Opaque || own == nil && k.own
	if isDir && own != nil {
		have := own.Entry
		have.Opaque = false
		differs = tree.Differ(&e, &have)
	}
	if differs {
		if err := d.put(e, at); err != nil {
			return err
		}
	}
	if !isDir || e.Opaque {
		own, low = nil, nil
	}
	return d.dir(at, k.simNode, own, low)
}

// shows reports whether what is shown in the place of an inode that is no directory is that inode.
func (d *differ) shows(at string, n *simNode, own *tree.Node, low *place) bool {
	if n.lower != nil {
		return own == nil && low != nil && !n.changed && low.elem == n.lower.elem && low.ino == n.lower.ino &&
			len(low.dirs) == 0
	}
	if own == nil || n.made == "" || own.Entry.Type == entry.Dir || own.Entry.Type == entry.Whiteout {
		return false
	}
	group := own.Entry.Inode
	if group == "" {
		group = tree.ShortName(at)
	}
	return group == tree.ShortName(n.made) && !tree.Differ(&own.Entry, &n.entry)
}

// hold has all names of an inode go into the fix-up, so that they stay one inode.
func (d *differ) hold(n *simNode) {
	if !n.emit {
		n.emit = true
		d.emitted = append(d.emitted, n)
	}
}

// findNames finds the names that the parent's inodes have where no entry of the layer came to. An element of which an
// inode has several names is read once.
func (d *differ) findNames() error {
	wanted := map[int32]map[uint64][]string{}
	for _, n := range d.emitted {
		if n.lower == nil || n.lower.nlink < 2 {
			continue
		}
		if wanted[n.lower.elem] == nil {
			wanted[n.lower.elem] = map[uint64][]string{}
		}
		wanted[n.lower.elem][n.lower.ino] = nil
	}
	for elem, inodes := range wanted {
		if err := namesOfInodes(d.Parent.elems[elem].Root, inodes, d.interrupted, d.grow); err != nil {
			return err
		}
		for ino, names := range inodes {
			n := d.r.inodes[inode{int(elem), ino}]
			for _, name := range names {
				if err := d.addName(n, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addName adds a name of the inode if it still has it.
func (d *differ) addName(n *simNode, name string) error {
	if err := d.interrupted(); err != nil {
		return err
	}
	k, err := d.r.find(name)
	if err == nil && k != nil && k.simNode == n {
		n.names = append(n.names, name)
	}
	return err
}

// emitNames puts an inode into the fix-up, with all its names.
func (d *differ) emitNames(n *simNode) error {
	if err := d.r.readAttrs(n); err != nil {
		return err
	}
	slices.Sort(n.names)
	n.names = slices.Compact(n.names)
	e := n.entry
	var from Source
	switch {
	case n.lower != nil:
		from = Source{&d.Parent.elems[n.lower.elem], n.lower.path()}
	case n.made != "":
		from = Source{d.self, n.made}
	case n.aside != "" && d.aside != nil:
		from = Source{d.aside, n.aside}
	}
	for _, name := range n.names {
		if err := d.interrupted(); err != nil {
			return err
		}
		if err := d.put(e, name); err != nil {
			return err
		}
		if e.Type == entry.File {
			if from.elem == nil {
				return fmt.Errorf("fix-up: %q: its content was not kept: %w", printable.Clip(name), errdefs.ErrInternal)
			}
			d.Copies[name] = from
		}
		if len(n.names) > 1 {
			d.Tree.Make(name).Entry.Inode = n.names[0]
		}
	}
	return nil
}

// attributes gives the directories that are only on the way the attributes that they have.
func (d *differ) attributes(n *tree.Node) error {
	for _, k := range n.Kids {
		if err := d.interrupted(); err != nil {
			return err
		}
		if k.Entry.Type != entry.Dir {
			continue
		}
		if k.Entry.Implied {
			dir, err := d.r.find(k.Entry.Path)
			if err == nil && dir == nil {
				err = fmt.Errorf("fix-up: %q is missing: %w", printable.Clip(k.Entry.Path), errdefs.ErrInternal)
			}
			if err == nil {
				err = d.r.readAttrs(dir.simNode)
			}
			if err != nil {
				return err
			}
			at := k.Entry.Path
			k.Entry = dir.entry
			k.Entry.Path, k.Entry.Implied, k.Entry.Opaque, k.Entry.Seq = at, false, false, 0
		}
		if err := d.attributes(k); err != nil {
			return err
		}
	}
	return nil
}

// find returns what has a path in the replay, without following symbolic links; nil when nothing has.
func (r *replay) find(p string) (*simName, error) {
	k := &simName{simNode: r.root}
	for name, rest, more := "", p, p != "."; more; {
		name, rest, more = strings.Cut(rest, "/")
		if !k.isDir() {
			return nil, nil
		}
		var err error
		if k, err = r.kid(k.simNode, name); err != nil || k == nil {
			return nil, err
		}
	}
	return k, nil
}
