package overlay

import (
	"fmt"
	"path"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// replay applies the entries of a layer, one after the other, to the merged tree of the parent. It does so in memory,
// and reads only those parts of the parent that the entries touch. The result is the tree that overlay has to show.
type replay struct {
	parent *Merged
	root   *simNode
	inodes map[inode]*simNode  // inodes of the parent that were visited, except directories
	groups map[string]*simNode // inodes with several names, by the first; only of a layer without an order
	// lenient leaves out hard links whose target is missing: a layer that was unpacked without the rights of root lacks
	// devices.
	lenient bool
	newDir  entry.Entry // the attributes of a directory without an entry
	grow    func(bytes int64) error
	// removals counts removed names. An element of recent is not used after a further removal.
	removals int
	recent   [2]resolved
}

// simNode is an inode of a replay.
type simNode struct {
	entry entry.Entry // until readAttrs, an inode of the parent has only Type: Dir, Symlink, or File for others
	read  bool        // all fields of entry are set

	// The next four fields are of a directory.
	kids   map[string]*simName // entries by name; nil marks a removed name of the parent
	below  *place              // the parent's directory whose other content is visible; nil: none
	up     *simNode            // the directory above, nil for the root
	length int                 // length of the path in bytes

	// lower is its place in the parent, nil if the layer made it.
	lower *place
	// made and aside name the content of anything but a directory in the layer; both may be empty.
	made    string // a path in the directory of the layer
	aside   string // the name of its content in the directory aside
	changed bool   // the header of a hard link changed an inode of the parent
	// xattrsCloned is true if the map of its extended attributes is not shared.
	xattrsCloned bool
	names        []string // its paths in the resulting tree
	emit         bool     // all its names go into the fix-up
}

// simName is a name in a directory of a replay.
type simName struct {
	*simNode
	explicit bool // an entry of the layer made the name, or the directory
}

func (n *simNode) isDir() bool { return n.entry.Type == entry.Dir }

// simMemory is the number of bytes that an inode of a replay takes, with one name and without its strings.
const simMemory = 448

// omitted is the type of a device that was left out, and of a hard link to one.
const omitted entry.Type = 0

// resolved remembers to which directory a path has led.
type resolved struct {
	path     string
	dir      *simNode
	removals int // replay.removals at that time
}

// newReplay returns a replay of a layer above the parent, before the first step.
func newReplay(parent *Merged, newDir entry.Entry, lenient bool, grow func(bytes int64) error) *replay {
	r := &replay{
		parent: parent, lenient: lenient, newDir: newDir, grow: grow,
		inodes: map[inode]*simNode{}, groups: map[string]*simNode{},
	}
	r.root = &simNode{entry: newDir, read: true}
	if len(parent.elems) > 0 {
		r.root.below = parent.top
	}
	return r
}

// step applies one entry.
func (r *replay) step(s *tarlayer.Step) error {
	switch {
	case s.Type == entry.Whiteout && s.Opaque:
		at, err := r.resolve(s.Path, s)
		if err != nil || len(at.missing) > 0 {
			return err
		}
		return r.purge(at.dir)
	case s.Path == ".", s.Path == "":
		return nil // a fix-up does not have the attributes of the root directory
	case s.Type == entry.Whiteout:
		at, err := r.resolve(path.Dir(s.Path), s)
		if err != nil || len(at.missing) > 0 {
			return err
		}
		return r.removeLower(at.dir, path.Base(s.Path))
	}
	dir, err := r.makeParent(s)
	if err != nil {
		return err
	}
	name := path.Base(s.Path)
	switch s.Type {
	case entry.Dir:
		return r.makeDir(dir, name, s)
	case entry.Link:
		return r.link(dir, name, s)
	}
	n := &simNode{entry: s.Entry, read: true, made: s.Made, aside: s.Aside}
	if s.Inode != "" { // layers without an order have an entry for each name of an inode
		if first := r.groups[s.Inode]; first != nil {
			n = first
		}
		r.groups[s.Inode] = n
	}
	if s.Omitted {
		n.entry.Type = omitted
	}
	return r.put(dir, name, n)
}

// makeDir sets the attributes of an existing directory, or makes a directory and replaces anything else.
func (r *replay) makeDir(dir *simNode, name string, s *tarlayer.Step) error {
	k, err := r.kid(dir, name)
	if err != nil {
		return err
	}
	if k != nil && k.isDir() {
		k.entry, k.read, k.explicit = s.Entry, true, true
		return nil
	}
	return r.put(dir, name, &simNode{entry: s.Entry, read: true})
}

// link gives an inode another name, and applies the attributes of the header to it.
func (r *replay) link(dir *simNode, name string, s *tarlayer.Step) error {
	r.remove(dir, name)
	at, err := r.resolve(path.Dir(s.Target), s)
	if err != nil {
		return err
	}
	var k *simName
	if len(at.missing) == 0 {
		if k, err = r.kid(at.dir, path.Base(s.Target)); err != nil {
			return err
		}
	}
	switch {
	case k == nil && r.lenient:
		return r.put(dir, name, &simNode{entry: entry.Entry{Type: omitted}, read: true})
	case k == nil:
		return stepError(s, "hard link to %q, which does not exist", printable.Clip(s.Target))
	case k.isDir():
		return stepError(s, "hard link to %q, which is a directory", printable.Clip(s.Target))
	case k.entry.Type == omitted:
		return r.put(dir, name, k.simNode)
	}
	if err := r.readAttrs(k.simNode); err != nil {
		return err
	}
	k.changed = k.changed || k.lower != nil
	e := &k.entry
	if e.Type != entry.Symlink {
		e.Mode = s.Mode
	}
	e.UID, e.GID, e.Sec, e.Nsec = s.UID, s.GID, s.Sec, s.Nsec
	addXattrs(e, s.Xattrs, &k.xattrsCloned)
	return r.put(dir, name, k.simNode)
}

// makeParent returns the directory that contains an entry. It makes missing directories, and replaces anything else by
// directories.
func (r *replay) makeParent(s *tarlayer.Step) (*simNode, error) {
	at, err := r.resolve(path.Dir(s.Path), s)
	if err != nil {
		return nil, err
	}
	dir := at.dir
	for _, name := range at.missing {
		n := &simNode{entry: r.newDir, read: true}
		if err := r.put(dir, name, n); err != nil {
			return nil, err
		}
		dir = n
	}
	return dir, nil
}

// put gives an inode a name and removes what has the name. It returns stream.ErrInvalidLayer if the path is too long.
func (r *replay) put(dir *simNode, name string, n *simNode) error {
	length := len(name)
	if dir.up != nil {
		length += dir.length + 1
	}
	if len(name) > maxName || length > maxPath {
		return fmt.Errorf("layer: a path of %d bytes with a component of %d: %w", length, len(name),
			stream.ErrInvalidLayer)
	}
	r.remove(dir, name)
	if n.isDir() {
		n.up, n.length = dir, length
	}
	if dir.kids == nil {
		dir.kids = map[string]*simName{}
	}
	dir.kids[name] = &simName{n, true}
	return r.grow(simMemory + int64(len(name)))
}

// remove removes a name. It leaves a mark if the parent has a directory there, which may have the name as well.
func (r *replay) remove(dir *simNode, name string) {
	if k := dir.kids[name]; k != nil {
		r.removals++
	}
	if dir.below == nil {
		delete(dir.kids, name)
		return
	}
	if dir.kids == nil {
		dir.kids = map[string]*simName{}
	}
	dir.kids[name] = nil
}

// removeLower removes what the parent has at a name. A directory that contains names of this layer stays as a new
// directory with these names.
func (r *replay) removeLower(dir *simNode, name string) error {
	k := dir.kids[name]
	if k == nil {
		if dir.below != nil {
			r.remove(dir, name)
		}
		return nil
	}
	if k.isDir() {
		if err := r.purge(k.simNode); err != nil {
			return err
		}
	}
	switch {
	case k.explicit:
	case len(k.kids) > 0:
		k.entry, k.read, k.explicit = r.newDir, true, true
	default:
		r.remove(dir, name)
	}
	return nil
}

// purge removes what the parent has in a directory. Afterwards the directory has only names of this layer, so that a
// further purge returns at once.
func (r *replay) purge(dir *simNode) error {
	if dir.below == nil {
		return nil
	}
	for name, k := range dir.kids {
		if k == nil {
			delete(dir.kids, name)
		} else if err := r.removeLower(dir, name); err != nil {
			return err
		}
	}
	for name, k := range dir.kids {
		if k == nil {
			delete(dir.kids, name)
		}
	}
	dir.below = nil
	r.removals++
	return nil
}

// kid returns what has a name in a directory, nil if nothing has. It loads the name from the parent if necessary.
func (r *replay) kid(dir *simNode, name string) (*simName, error) {
	if k, ok := dir.kids[name]; ok || dir.below == nil || len(name) > maxName {
		return k, nil
	}
	p, err := r.parent.kid(dir.below, name)
	if err != nil || p == nil {
		return nil, err
	}
	k := &simName{simNode: r.load(p)}
	if k.isDir() {
		k.up, k.length = dir, len(name)
		if dir.up != nil {
			k.length += dir.length + 1
		}
	}
	if dir.kids == nil {
		dir.kids = map[string]*simName{}
	}
	dir.kids[name] = k
	return k, r.grow(simMemory + int64(len(name)))
}

// load returns the inode of a place in the parent.
func (r *replay) load(p *place) *simNode {
	switch {
	case len(p.dirs) > 0:
		return &simNode{entry: entry.Entry{Type: entry.Dir}, below: p, lower: p}
	default:
		id := inode{int(p.elem), p.ino}
		n := r.inodes[id]
		if n == nil {
			n = &simNode{entry: entry.Entry{Type: entry.File}, lower: p}
			if p.link {
				n.entry.Type = entry.Symlink
			}
			r.inodes[id] = n
		}
		return n
	}
}

// readAttrs reads the attributes of an inode of the parent, unless they were read before.
func (r *replay) readAttrs(n *simNode) error {
	if n.read {
		return nil
	}
	p := n.lower
	dir, name := r.parent.elems[p.elem].Root, "."
	if p.parent != nil {
		var err error
		if dir, err = r.parent.dirs.open(r.parent, int(p.elem), p.parent); err != nil {
			return err
		}
		name = p.name
	}
	e, err := beneath.ReadEntry(dir, name)
	if err != nil {
		return err
	}
	if isDir, isLink := e.Type == entry.Dir, e.Type == entry.Symlink; isDir != n.isDir() || isLink != p.link {
		return nodes.PathError("read", p.path(), nodes.ErrReplaced)
	}
	n.entry, n.read = *e, true
	return nil
}
