package unpack

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// finish decides what comes of the whiteouts, sets the attributes of the directories, and lists the entries.
func (x *extractor) finish(ctx context.Context) (*Result, error) {
	x.review(x.root)
	if err := x.checkLinks(x.root); err != nil {
		return nil, err
	}
	f := &finisher{extractor: x}
	if err := f.dir(ctx, x.root, false); err != nil {
		return nil, err
	}
	return f.result(), nil
}

// review looks at every directory after its content: what devices were left out of it, and whether it is still bare.
func (x *extractor) review(dir *node) {
	for name, n := range dir.children {
		if n.isDir() {
			x.review(n)
		}
		if !n.bare {
			dir.bare = false
		}
		if n.ino.omitted {
			// What the layers below have at its path must not show through.
			delete(dir.children, name)
			dir.hide(name, n.seq)
		}
	}
}

// checkLinks looks again at the links to lower layers, now that the whole layer is known.
func (x *extractor) checkLinks(dir *node) error {
	for _, n := range dir.children {
		switch n.ino.Type {
		case Dir:
			if err := x.checkLinks(n); err != nil {
				return err
			}
		case Link:
			if reason := lowerGone(x.root, n.ino.Target, true); reason != "" {
				return invalid(n.path(), "hard link to %q, %s", clip(n.ino.Target), reason)
			}
		}
	}
	return nil
}

// finisher gathers the entries.
type finisher struct {
	*extractor
	items  []item
	opaque bool // a directory is
}

type item struct {
	path string
	n    *node // nil for a whiteout
	seq  int   // of a whiteout
}

// dir finishes a directory after its content. hidden: nothing of the layers below is seen in it anyway.
func (f *finisher) dir(ctx context.Context, n *node, hidden bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	path := n.path()
	f.items = append(f.items, item{path: path, n: n})
	if hidden {
		n.marked, n.fresh = false, false // said above it already
	}
	hidden = hidden || n.isOpaque()
	if err := f.prune(n, hidden); err != nil {
		return err
	}
	markers := f.markers(n, hidden)
	for _, c := range n.children {
		if !c.isDir() {
			c.ino.names++
			f.items = append(f.items, item{path: c.path(), n: c})
			continue
		}
		if hidden && c.implied {
			c.implied = false // there is no directory below that it could take after
		}
		if err := f.dir(ctx, c, hidden); err != nil {
			return err
		}
	}
	prefix := path + "/"
	if n.parent == nil {
		prefix = ""
	}
	for _, name := range markers {
		f.items = append(f.items, item{path: prefix + name, seq: n.whiteouts[name]})
	}
	return f.seal(n, path, markers)
}

// prune removes bare directories where nothing of the layers below is left for their whiteouts: a whiteout of nothing makes
// no directory.
func (f *finisher) prune(n *node, hidden bool) error {
	for name, c := range n.children {
		if _, gone := n.whiteouts[name]; !c.bare || !hidden && !gone {
			continue
		}
		if _, err := f.clear(c.path(), n, name); err != nil {
			return err
		}
	}
	return nil
}

// isOpaque: the layers below are not to be seen in it.
func (n *node) isOpaque() bool { return n.marked || n.fresh }

// markers are the whiteouts that go to disk: those of names that the layer does not have. A directory of such a name is
// there anew, so that it becomes opaque and takes nothing after the one that was removed.
func (f *finisher) markers(n *node, hidden bool) []string {
	var names []string
	for name := range n.whiteouts {
		c := n.children[name]
		switch {
		case c == nil:
			if !hidden {
				names = append(names, name)
			}
		case c.isDir():
			c.fresh, c.implied = true, false
		}
	}
	return names
}

// seal writes whiteouts and sets the directory's own attributes.
func (f *finisher) seal(n *node, path string, markers []string) error {
	fd, err := f.dirs.fd(n)
	if err != nil {
		return err
	}
	for _, name := range markers {
		if err := unix.Mknodat(fd, name, unix.S_IFCHR, 0); err != nil {
			return ioError(path+"/"+name, "create whiteout", err)
		}
	}
	var own []string
	if len(markers) > 0 {
		own = append(own, OriginAttr, "")
	}
	if n.isOpaque() {
		f.opaque = true
		own = append(own, OpaqueAttr, "y")
	}
	for ; len(own) > 0; own = own[2:] {
		if err := unix.Fsetxattr(fd, f.prefix+own[0], []byte(own[1]), 0); err != nil {
			return ioError(path, "xattr "+f.prefix+own[0], err)
		}
	}
	return f.apply(path, target{fd: fd}, n.ino, 0o700)
}

// result sorts the entries and sums them up.
func (f *finisher) result() *Result {
	slices.SortFunc(f.items, func(a, b item) int { return ComparePaths(a.path, b.path) })
	r := &Result{Entries: make([]Entry, len(f.items)), Root: f.rooted}
	first := make(map[*inode]string)
	for i, it := range f.items {
		e := &r.Entries[i]
		if it.n == nil {
			*e = Entry{Path: it.path, Type: Whiteout, Seq: it.seq}
			r.Inodes++
			r.Whiteouts = true
			continue
		}
		*e = it.n.ino.Entry
		e.Path, e.Implied, e.Opaque, e.Seq = it.path, it.n.implied, it.n.isOpaque(), it.n.seq
		if e.Implied {
			e.Seq = 0
		}
		if e.Type == Link || e.Implied && it.path != "." {
			r.Needs = true
		}
		if e.Type == Link {
			continue
		}
		if it.n.ino.names > 1 {
			if first[it.n.ino] == "" {
				first[it.n.ino] = it.path
			}
			if e.Inode = first[it.n.ino]; e.Inode != it.path {
				continue
			}
		}
		r.Inodes++
		r.Size += usage(e)
	}
	r.Whiteouts = r.Whiteouts || f.opaque
	r.Empty = len(r.Entries) == 1 && !f.opaque
	return r
}

// usage is what an entry takes on disk by Result.Size.
func usage(e *Entry) int64 {
	const block = 4096
	switch e.Type {
	case Dir:
		return block
	case File:
		return (e.Size + block - 1) / block * block
	}
	return 0
}

// ComparePaths orders paths as Result.Entries are: by bytes, the root first.
func ComparePaths(a, b string) int {
	if a == "." || b == "." {
		switch {
		case a == b:
			return 0
		case a == ".":
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}
