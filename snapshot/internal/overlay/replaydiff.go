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
	emitted     []*simNode // inodes other than directories of which all names go into the fix-up
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
			d.include(n)
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

// listedMemory is the number of bytes that a listed name takes beside its string.
const listedMemory = 64

// dir compares the directory want of the replay with what overlay shows at the same path: upperDir, the layer's
// directory, above lowerDir, the parent's. Either is nil if nothing of it is shown.
func (d *differ) dir(at string, want *simNode, upperDir *tree.Node, lowerDir *place) error {
	names := map[string]struct{}{}
	for name := range want.kids {
		names[name] = struct{}{}
	}
	if upperDir != nil {
		for name := range upperDir.Kids {
			names[name] = struct{}{}
		}
	}
	if (want.below == nil) != (lowerDir == nil) { // only one of them shows the rest of the parent's directory
		from := want.below
		if from == nil {
			from = lowerDir
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
		if err := d.name(inside(at, name), name, want, upperDir, lowerDir); err != nil {
			return err
		}
	}
	return nil
}

// name compares what the replay has at one name of a directory with what overlay shows there.
func (d *differ) name(at, name string, dir *simNode, upperDir *tree.Node, lowerDir *place) error {
	k, err := d.r.kid(dir, name)
	if err != nil {
		return err
	}
	var upper *tree.Node
	if upperDir != nil {
		upper = upperDir.Kids[name]
	}
	if upper != nil && upper.Entry.Type == entry.Link {
		upper = nil // nothing is on disk
	}
	var lower *place
	if lowerDir != nil && (upper == nil || upper.Entry.Type == entry.Dir && !upper.Entry.Opaque) {
		if lower, err = d.Parent.kid(lowerDir, name); err != nil {
			return err
		}
	}
	if upper != nil && lower != nil && len(lower.dirs) == 0 {
		lower = nil // hidden by the layer's directory
	}
	switch {
	case k == nil || k.entry.Type == omitted:
		if lower != nil || upper != nil && upper.Entry.Type != entry.Whiteout {
			return d.put(entry.Entry{Type: entry.Whiteout}, at)
		}
		return nil
	case k.isDir():
		return d.subdir(at, k, upper, lower)
	}
	if k.names = append(k.names, at); !d.shows(at, k.simNode, upper, lower) {
		d.include(k.simNode)
	}
	return d.grow(int64(len(at)))
}

// subdir compares a directory with what overlay shows at its path.
func (d *differ) subdir(at string, k *simName, upper *tree.Node, lower *place) error {
	isDir := upper != nil && upper.Entry.Type == entry.Dir || upper == nil && lower != nil && len(lower.dirs) > 0
	if isDir && upper == nil && !k.explicit && len(k.kids) == 0 && k.below != nil {
		return nil // the parent's directory, which no entry of the layer changes
	}
	if err := d.r.readAttrs(k.simNode); err != nil {
		return err
	}
	e := k.entry
	e.Opaque = isDir && upper == nil && k.below == nil // then all its content is in the fix-up
	differs := !isDir || e.Opaque || upper == nil && k.explicit
	if isDir && upper != nil {
		have := upper.Entry
		have.Opaque = false
		differs = tree.Differ(&e, &have)
	}
	if differs {
		if err := d.put(e, at); err != nil {
			return err
		}
	}
	if !isDir || e.Opaque {
		upper, lower = nil, nil
	}
	return d.dir(at, k.simNode, upper, lower)
}

// shows reports whether overlay shows the inode n at a path. n is not a directory. upper and lower are what the layer
// and the parent have there.
func (d *differ) shows(at string, n *simNode, upper *tree.Node, lower *place) bool {
	if n.lower != nil {
		return upper == nil && lower != nil && !n.changed && lower.elem == n.lower.elem && lower.ino == n.lower.ino &&
			len(lower.dirs) == 0
	}
	if upper == nil || n.made == "" || upper.Entry.Type == entry.Dir || upper.Entry.Type == entry.Whiteout {
		return false
	}
	group := upper.Entry.Inode
	if group == "" {
		group = tree.ShortName(at)
	}
	return group == tree.ShortName(n.made) && !tree.Differ(&upper.Entry, &n.entry)
}

// include marks an inode, so that all its names go into the fix-up and stay one inode.
func (d *differ) include(n *simNode) {
	if !n.emit {
		n.emit = true
		d.emitted = append(d.emitted, n)
	}
}

// findNames finds the names that emitted inodes of the parent have at paths that no entry of the layer is about. It
// reads an element of the parent's stack once, and only if the element has an emitted inode with several names.
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

// addName adds a name to n if the name still leads to n in the replay.
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

// attributes sets the attributes of directories that are in the fix-up only because of their content: they keep those
// that they have in the replay.
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

// find returns the name at a path of the replay, nil if there is none. It follows no symbolic links.
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
