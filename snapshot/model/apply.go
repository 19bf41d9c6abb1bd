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
	dir  *name
	base string
}

// applier changes the tree by the entries of one layer.
type applier struct {
	root      *name
	layer     int
	followed  map[*name]bool // symlinks of the layers below that led to somewhere
	gone      map[spot]bool  // where something of the layers below was taken away
	reached   map[*name]bool // directories behind symlinks of the layers below
	aliased   map[*name]bool // made behind them
	lastLower bool           // the last parent is behind one
	entered   map[*name]bool // files of the layers below with markers below them
	targets   map[*name]bool // names of the layers below that hard links of this layer name
	dangling  bool           // there was a hard link to nothing
}

// nothing is the kind of a hard link to what is not there.
const nothing = "nothing"

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
}

func undecided(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrUndecided)...)
}

func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

func (a *applier) item(i unpacktest.Item) error {
	h := i.Header
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	dir, base := path.Split(clean(h.Name))
	for _, c := range strings.Split(dir, "/") {
		if strings.HasPrefix(c, ".wh..wh.") {
			return nil
		}
		if strings.HasPrefix(c, ".wh.") {
			return invalid("below a whiteout")
		}
	}
	switch {
	case h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0:
		return invalid("a whiteout as a device")
	case base == "":
		if h.Typeflag != tar.TypeDir {
			return invalid("the root as no directory")
		}
		a.describe(a.root, i)
		return nil
	case strings.HasPrefix(base, ".wh."):
		return a.whiteout(dir, strings.TrimPrefix(base, ".wh."))
	case h.Typeflag == tar.TypeLink:
		return a.link(dir, base, i)
	}
	parent, err := a.makeParent(dir)
	if err != nil {
		return err
	}
	if old := parent.kids[base]; h.Typeflag == tar.TypeDir && old != nil && old.isDir() {
		a.describe(old, i)
		return nil
	}
	if err := a.remove(parent, base); err != nil {
		return err
	}
	made := &name{node: &node{}}
	if h.Typeflag == tar.TypeDir {
		made = newDir(a.layer)
	}
	a.describe(made, i)
	parent.kids[base] = made
	a.aliased[made] = a.lastLower
	return nil
}

// describe gives an inode what the header of an entry says, but for hard links.
func (a *applier) describe(n *name, i unpacktest.Item) {
	h := i.Header
	n.layer, n.xattrs = a.layer, map[string]string{}
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
	case tar.TypeBlock:
		n.kind, n.data = "block", fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
	}
	n.header(i)
}

// header sets what hard links' headers change too.
func (n *name) header(i unpacktest.Item) {
	h := i.Header
	n.mode, n.uid, n.gid, n.time = h.Mode&0o7777, h.Uid, h.Gid, h.ModTime
	if n.kind == "symlink" {
		n.mode = 0o777
	}
	for k, v := range h.PAXRecords {
		k, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if strings.HasPrefix(k, "trusted.overlay.") || strings.HasPrefix(k, "user.overlay.") {
			continue
		}
		if ok && (n.kind == "file" || n.kind == "dir" || !strings.HasPrefix(k, "user.")) {
			n.xattrs = maps.Clone(n.xattrs)
			n.xattrs[k] = v
		}
	}
}

// finish says whether the layer is valid as a whole.
func (a *applier) finish() error {
	if !a.dangling {
		return nil
	}
	all := map[string]*name{}
	a.root.gather("", all)
	for p, n := range all {
		if n.kind == nothing {
			return invalid("%q: a hard link to nothing", p)
		}
	}
	return undecided("a hard link to nothing that was replaced")
}

// remove takes a name away because something else comes in its place.
func (a *applier) remove(parent *name, base string) error {
	old := parent.kids[base]
	if old == nil {
		return nil
	}
	if err := a.forget(old, "replaces"); err != nil {
		return err
	}
	a.gone[spot{parent, base}] = old.layer != a.layer || a.gone[spot{parent, base}]
	delete(parent.kids, base)
	return nil
}

// forget looks at all that goes with a name of a lower layer.
func (a *applier) forget(n *name, verb string) error {
	for _, k := range n.kids {
		if err := a.forget(k, verb); err != nil {
			return err
		}
	}
	switch {
	case n.layer == a.layer && n.lower && n.kind != nothing:
		return undecided("it %s a hard link whose header counts for the layers below", verb)
	case a.reached[n]:
		return undecided("it %s what a symlink of the layers below leads to", verb)
	case n.layer == a.layer:
		return nil
	}
	if a.targets[n] {
		return invalid("it %s what a hard link names", verb)
	}
	if a.followed[n] {
		return undecided("it %s a symlink that other entries follow", verb)
	}
	return nil
}

// whiteout applies a marker: to what the layers below have, never to what this one has.
func (a *applier) whiteout(dir, base string) error {
	opaque := base == ".wh..opq"
	switch {
	case strings.HasPrefix(base, ".wh.") && !opaque:
		return nil
	case base == "" || base == "." || base == "..":
		return invalid("a whiteout of nothing")
	}
	w, err := a.resolve(dir, true)
	if err != nil || w.dir == nil || len(w.missing) > 0 {
		return err
	}
	if opaque {
		return a.purge(w.dir)
	}
	n := w.dir.kids[base]
	if n == nil {
		return nil
	}
	return a.removeLower(w.dir, base)
}

// purge removes what the layers below have in a directory.
func (a *applier) purge(dir *name) error {
	for k := range dir.kids {
		if err := a.removeLower(dir, k); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) removeLower(dir *name, base string) error {
	n := dir.kids[base]
	if n.isDir() {
		if err := a.purge(n); err != nil {
			return err
		}
	}
	if n.layer == a.layer {
		return nil
	}
	if len(n.kids) > 0 && a.reached[n] {
		return undecided("it removes what a symlink of the layers below leads to")
	}
	if len(n.kids) > 0 { // the layer has something in it, but no entry for it: it is a new one
		anew := newDir(a.layer)
		anew.kids = n.kids
		dir.kids[base] = anew
		return nil
	}
	if err := a.forget(n, "removes"); err != nil {
		return err
	}
	delete(dir.kids, base)
	a.gone[spot{dir, base}] = true
	return nil
}

// link applies a hard link.
func (a *applier) link(dir, base string, i unpacktest.Item) error {
	to := clean(i.Header.Linkname)
	if to == "" {
		return invalid("a hard link to the root")
	}
	if strings.HasPrefix(path.Base(to), ".wh.") {
		return invalid("a hard link to a whiteout")
	}
	w, err := a.resolve(path.Dir(to), false)
	if err != nil {
		return err
	}
	var target *name
	if len(w.missing) == 0 {
		target = w.dir.kids[path.Base(to)]
	}
	if target == nil || target.isDir() && target.layer != a.layer { // refused at the end, if it is still there
		target = &name{node: &node{kind: nothing}, layer: a.layer, lower: true}
		a.dangling = true
	}
	parent, err := a.makeParent(dir)
	switch {
	case err != nil:
		return err
	case w.lower && target.layer == a.layer && target.kind != nothing:
		return undecided("a hard link that a symlink of the layers below leads to what this one has")
	case a.entered[target]:
		return undecided("a hard link to a file with markers below it")
	case a.followed[target]:
		return undecided("a hard link to a symlink that is followed too")
	case target.isDir() || target.kind != nothing && w.dir.kids[path.Base(to)] != target:
		return invalid("a hard link to a directory")
	case parent.kids[base] == target:
		return invalid("a hard link to itself")
	case parent.kids[base] != nil && parent.kids[base].node == target.node && parent.kids[base].layer == a.layer && target.layer != a.layer:
		// the same link once more
	case parent.kids[base] != nil && parent.kids[base].node == target.node:
		return undecided("a hard link in place of another name of the inode")
	case parent.kids[base] != nil && parent.kids[base].has(target) && target.layer != a.layer:
		target, a.dangling = &name{node: &node{kind: nothing}, layer: a.layer, lower: true}, true
	case parent.kids[base] != nil && parent.kids[base].has(target):
		return invalid("a hard link into what it replaces")
	}
	lower := target.lower || target.layer != a.layer
	if target.layer != a.layer {
		a.targets[target] = true
	}
	if err := a.remove(parent, base); err != nil {
		return err
	}
	made := &name{node: target.node, layer: a.layer, lower: lower}
	made.header(i)
	parent.kids[base] = made
	return nil
}

func (n *name) has(other *name) bool {
	for _, k := range n.kids {
		if k == other || k.has(other) {
			return true
		}
	}
	return false
}
