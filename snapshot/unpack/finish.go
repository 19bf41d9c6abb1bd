package unpack

import (
	"context"
	"fmt"

	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// finish decides what comes of the whiteouts, sets the attributes of the directories, and sums up what there is.
func (x *extractor) finish(ctx context.Context) (*Result, error) {
	x.review(x.root)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	f := &finisher{extractor: x, result: &Result{Root: x.rooted, root: x.root}}
	if err := f.dir(ctx, x.root, false); err != nil {
		return nil, err
	}
	r := f.result
	r.OpaqueRoot = x.root.isOpaque()
	r.Empty = r.Count == 1 && !f.opaque
	r.Whiteouts = r.Whiteouts || f.opaque
	r.Dropped = x.dropped.sorted()
	return r, x.finishOrder(r)
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
			dir.hide(name, whiteout{seq: n.seq, device: true})
		}
	}
}

// finisher goes through the directories of a layer that was read.
type finisher struct {
	*extractor
	result *Result
	opaque bool // a directory is
}

// dir finishes a directory after its content. hidden: nothing of the layers below is seen in it anyway.
func (f *finisher) dir(ctx context.Context, n *node, hidden bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	if hidden {
		n.marked, n.fresh = false, false // said above it already
	}
	f.add(n)
	hidden = hidden || n.isOpaque()
	if err := f.prune(n, hidden); err != nil {
		return err
	}
	f.markers(n, hidden)
	for _, c := range n.children {
		if !c.isDir() {
			f.add(c)
			continue
		}
		if hidden && c.implied {
			c.implied = false // there is no directory below that it could take after
		}
		if err := f.dir(ctx, c, hidden); err != nil {
			return err
		}
	}
	return f.seal(ctx, n)
}

// add sums up one path.
func (f *finisher) add(n *node) {
	r := f.result
	r.Count++
	if n.implied {
		n.seq = 0
	}
	if n.ino.Type == entry.Link || n.implied && n.parent != nil {
		r.Needs = true
	}
	if n.ino.Type == entry.Link {
		return
	}
	if n.ino.names++; n.ino.names == 1 || n.isDir() {
		r.Inodes++
		r.Size += usage(n.ino)
	}
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

// markers leaves the whiteouts that go to disk: those of names that the layer does not have. A directory of such a name
// is there anew, so that it becomes opaque and takes nothing after the one that was removed.
func (f *finisher) markers(n *node, hidden bool) {
	for name := range n.whiteouts {
		c := n.children[name]
		if c != nil || hidden {
			f.order.odd = true
			delete(n.whiteouts, name)
		}
		if c != nil && c.isDir() {
			c.fresh, c.implied = true, false
		}
	}
	f.result.Count += len(n.whiteouts)
	f.result.Inodes += int64(len(n.whiteouts))
	f.result.Whiteouts = f.result.Whiteouts || len(n.whiteouts) > 0
}

// seal writes whiteouts and sets the directory's own attributes.
func (f *finisher) seal(ctx context.Context, n *node) error {
	path := n.path()
	fd, err := f.dirs.fd(n)
	if err != nil {
		return err
	}
	m := beneath.Marks{Opaque: n.isOpaque()}
	for name := range n.whiteouts {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("layer: %w", err)
		}
		plain, err := beneath.MakeWhiteoutAt(fd, name)
		if err != nil {
			return ioError(path+"/"+name, "create whiteout", err)
		}
		m.Whiteouts = m.Whiteouts || !plain
		f.result.Plain = f.result.Plain || plain
	}
	plain, err := beneath.MarkAt(fd, m, f.prefix)
	if err != nil {
		return ioError(path, "mark", err)
	}
	f.opaque, f.result.Plain = f.opaque || m.Opaque, f.result.Plain || plain
	return f.apply(path, beneath.Inode{FD: fd}, n.ino, 0o700)
}

// usage is what an entry takes on disk by Result.Size.
func usage(i *inode) int64 {
	const block = 4096
	switch i.Type {
	case entry.Dir:
		return block
	case entry.File:
		return (i.Size + block - 1) / block * block
	}
	return 0
}
