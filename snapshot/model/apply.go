package model

import (
	"archive/tar"
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// spot is a place for a name.
type spot struct {
	dir  *node
	base string
}

// applier changes the tree by the entries of one layer.
type applier struct {
	root   *name
	layer  int
	seen   map[Case]int
	linked map[spot]bool // the names that hard links of this layer named
	gone   map[spot]bool // where this layer took a directory away, or had a whiteout
}

const (
	prefix = ".wh."
	meta   = prefix + prefix
	opaque = meta + ".opq"
	maxLen = 255
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
}

func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

func (a *applier) item(i unpacktest.Item) error {
	h := i.Header
	dir, base := path.Split(clean(h.Name))
	marker := strings.HasPrefix(base, prefix)
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return nil
	case h.Name == "" || base == "" && h.Typeflag != tar.TypeDir:
		a.seen[NoName]++
		return nil
	case base == "":
		a.seen[Root]++
		a.describe(a.root, i)
		return nil
	case strings.HasPrefix(base, meta) && base != opaque, strings.Contains("/"+dir, "/"+meta):
		a.seen[MetaMarker]++
		return nil
	case strings.Contains("/"+dir, "/"+prefix):
		a.seen[MarkerDir]++
	}
	switch {
	case len(base) > maxLen && !(marker && len(base) <= len(prefix)+maxLen):
		return invalid("a name of %d bytes", len(base))
	case base == opaque:
		return a.opaque(dir)
	case marker:
		return a.whiteout(dir, strings.TrimPrefix(base, prefix))
	case h.Typeflag == tar.TypeLink:
		return a.link(dir, base, i)
	}
	return a.add(dir, base, i)
}

// add makes what an entry describes. A directory keeps what is in it; everything else is replaced.
func (a *applier) add(dir, base string, i unpacktest.Item) error {
	h := i.Header
	parent, err := a.makeParent(dir)
	if err != nil {
		return err
	}
	old := parent.kids[base]
	if h.Typeflag == tar.TypeDir && old != nil && old.isDir() {
		a.describe(old, i)
		return nil
	}
	a.remove(parent, base)
	made := &name{node: &node{}}
	if h.Typeflag == tar.TypeDir {
		made = a.newDir(parent, base)
	}
	a.describe(made, i)
	parent.kids[base] = made
	return nil
}

// link applies a hard link. What it replaces is gone before its target is looked for.
func (a *applier) link(dir, base string, i unpacktest.Item) error {
	to := clean(i.Header.Linkname)
	if to == "" {
		return invalid("a hard link to the root")
	}
	parent, err := a.makeParent(dir)
	if err != nil {
		return err
	}
	a.remove(parent, base)
	w, err := a.resolve(path.Dir(to))
	if err != nil {
		return err
	}
	target := w.dir.kids[path.Base(to)]
	switch {
	case target == nil || len(w.missing) > 0:
		a.seen[LinkToNothing]++
		return invalid("a hard link to nothing")
	case target.isDir():
		return invalid("a hard link to a directory")
	}
	a.count(target, w)
	made := &name{node: target.node, layer: a.layer, below: target.layer != a.layer || target.below}
	if target.layer != a.layer {
		a.linked[spot{w.dir.node, path.Base(to)}] = true
	}
	before := made.describe() + made.attributes()
	made.header(i)
	if before != made.describe()+made.attributes() {
		a.seen[LinkHeader]++
	}
	parent.kids[base] = made
	return nil
}

// count notes the cases of hard links to the layers below.
func (a *applier) count(target *name, w where) {
	switch {
	case target.layer != a.layer:
		a.seen[LowerLink]++
		if w.lower {
			a.seen[LinkBehind]++
		}
	case target.below:
		a.seen[LinkOfLink]++
	}
}

// describe gives a name what the header of its entry, which is no hard link, says.
func (a *applier) describe(n *name, i unpacktest.Item) {
	h := i.Header
	n.layer, n.xattrs = a.layer, nil
	switch h.Typeflag {
	case tar.TypeDir:
		n.kind = "dir"
	case tar.TypeReg:
		n.kind, n.data = "file", fmt.Sprintf(" %q", i.Body)
	case tar.TypeSymlink:
		n.kind, n.target, n.data = "symlink", h.Linkname, " -> "+h.Linkname
	case tar.TypeFifo:
		n.kind = "fifo"
	case tar.TypeChar:
		n.kind, n.data = "char", fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		if h.Devmajor == 0 && h.Devminor == 0 {
			n.kind = absent
			a.seen[Device]++
		}
	case tar.TypeBlock:
		n.kind, n.data = "block", fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
	}
	if h.Uid < 0 || h.Gid < 0 {
		a.seen[OddOwner]++
	}
	if !n.header(i) {
		a.seen[NoXattr]++
	}
}

// header sets what the headers of hard links change, too. It returns false when the inode cannot have all xattrs.
func (n *name) header(i unpacktest.Item) bool {
	h := i.Header
	n.mode, n.uid, n.gid, n.time = h.Mode&0o7777, owner(h.Uid), owner(h.Gid), h.ModTime
	if n.kind == "symlink" {
		n.mode = 0o777
	}
	all := true
	for k, v := range h.PAXRecords {
		k, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		switch {
		case !ok || strings.HasPrefix(k, "trusted.overlay.") || strings.HasPrefix(k, "user.overlay."):
		case n.kind != "file" && n.kind != "dir" && strings.HasPrefix(k, "user."):
			all = false
		default:
			n.xattrs = maps.Clone(n.xattrs)
			if n.xattrs == nil {
				n.xattrs = map[string]string{}
			}
			n.xattrs[k] = v
		}
	}
	return all
}

// owner is the kernel's reading of a user or group ID: -1 changes nothing, and a new file belongs to root.
func owner(id int) int {
	if uint32(id) == 1<<32-1 {
		return 0
	}
	return int(uint32(id))
}

// absent is the kind of a character device 0:0 until its layer ends. Hard links may name it.
const absent = "absent"

// finish takes away the devices 0:0 of the layer.
func (a *applier) finish(dir *node) {
	for base, k := range dir.kids {
		if k.kind == absent {
			delete(dir.kids, base)
		}
		a.finish(k.node)
	}
}

// remove takes away whatever has a name, because something else comes in its place.
func (a *applier) remove(parent *name, base string) {
	old := parent.kids[base]
	if old == nil {
		return
	}
	if old.layer == a.layer {
		a.seen[Replaced]++
	}
	a.forget(parent.node, base)
}

// forget takes a name away, with all that is below it, and counts what that does to hard links.
func (a *applier) forget(dir *node, base string) {
	n := dir.kids[base]
	for k := range n.kids {
		a.forget(n.node, k)
	}
	if a.linked[spot{dir, base}] {
		a.seen[LinkedGone]++
	}
	if n.layer == a.layer && n.below {
		a.seen[LinkGone]++
	}
	delete(dir.kids, base)
	if n.isDir() {
		a.gone[spot{dir, base}] = true
	}
}

// newDir is a directory for a name.
func (a *applier) newDir(parent *name, base string) *name {
	if a.gone[spot{parent.node, base}] {
		a.seen[DirOverGone]++
	}
	return newDir(a.layer)
}

// whiteout takes away what the layers below have of a name, never what this layer has.
func (a *applier) whiteout(dir, base string) error {
	if base == "" || base == "." || base == ".." {
		return invalid("a whiteout of nothing")
	}
	parent, err := a.markerParent(dir)
	if err != nil || parent == nil {
		return err
	}
	switch n := parent.kids[base]; {
	case n == nil:
		a.seen[IdleMarker]++
	case n.layer == a.layer:
		a.seen[OwnMarker]++
	}
	a.removeLower(parent, base)
	return nil
}

// opaque takes away all that the layers below have in a directory.
func (a *applier) opaque(dir string) error {
	parent, err := a.markerParent(dir)
	if err != nil || parent == nil {
		return err
	}
	if parent == a.root {
		a.seen[OpaqueRoot]++
	}
	a.purge(parent)
	return nil
}

// markerParent resolves the directory of a whiteout. There is none where something else or nothing has the name.
func (a *applier) markerParent(dir string) (*name, error) {
	w, err := a.resolve(dir)
	if err != nil {
		return nil, err
	}
	if w.link {
		a.seen[MarkerBelow]++
	}
	if len(w.missing) > 0 {
		a.seen[BlockedMarker]++
		return nil, nil
	}
	return w.dir, nil
}

func (a *applier) purge(dir *name) {
	for k := range dir.kids {
		a.removeLower(dir, k)
	}
}

func (a *applier) removeLower(dir *name, base string) {
	n := dir.kids[base]
	if n == nil {
		return
	}
	a.purge(n)
	switch {
	case n.layer == a.layer:
	case len(n.kids) > 0: // the layer has something in the directory, but no entry for it: it is a new one
		a.seen[MadeAnew]++
		anew := newDir(a.layer)
		anew.kids = n.kids
		dir.kids[base] = anew
	default:
		a.forget(dir.node, base)
		a.gone[spot{dir.node, base}] = true
	}
}
