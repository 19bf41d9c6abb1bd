package tarlayer

import (
	"context"
	"fmt"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// finish decides the effect of the whiteouts, has the directories finished, and sums up the layer.
func (x *reader) finish(ctx context.Context) (*Result, error) {
	x.review(x.root)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	f := &finisher{reader: x, result: &Result{HasRootEntry: x.hasRootEntry, root: x.root}}
	if err := f.dir(ctx, x.root, false); err != nil {
		return nil, err
	}
	r := f.result
	r.OpaqueRoot = x.root.Opaque()
	r.Empty = r.Count == 1 && !f.opaque
	r.Whiteouts = r.Whiteouts || f.opaque
	return r, x.finishOrder(r)
}

// review goes through the directories, from the lowest up. It replaces omitted devices by whiteouts, and decides which
// directories have nothing but whiteouts.
func (x *reader) review(dir *Node) {
	for name, n := range dir.children {
		if n.IsDir() {
			x.review(n)
		}
		if !n.whiteoutsOnly {
			dir.whiteoutsOnly = false
		}
		if n.Inode.omitted {
			// What the layers below have at its path must not show through.
			delete(dir.children, name)
			dir.hide(name, whiteout{seq: n.seq, device: true})
		}
	}
}

// finisher goes through the directories of a layer that was read.
type finisher struct {
	*reader
	result *Result
	opaque bool // there is an opaque directory
}

// dir finishes a directory after its content. hidden: a directory above it already hides what lower layers have in it.
func (f *finisher) dir(ctx context.Context, n *Node, hidden bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	if hidden {
		n.marked, n.replaced = false, false // the mark of the directory above is enough
	}
	f.add(n)
	hidden = hidden || n.Opaque()
	if err := f.prune(ctx, n, hidden); err != nil {
		return err
	}
	f.whiteouts(n, hidden)
	for _, c := range n.children {
		if !c.IsDir() {
			f.add(c)
			continue
		}
		if hidden && c.implied {
			c.implied = false // no lower layer has a directory from which it could take its attributes
		}
		if err := f.dir(ctx, c, hidden); err != nil {
			return err
		}
	}
	f.opaque = f.opaque || n.Opaque()
	if err := f.w.FinishDir(ctx, n); err != nil {
		return entryError(n.Path(), err)
	}
	return nil
}

// add sums up one path.
func (f *finisher) add(n *Node) {
	r := f.result
	r.Count++
	if n.implied {
		n.seq = 0
	}
	if n.Inode.Type == entry.Link || n.implied && n.parent != nil {
		r.NeedsFixup = true
	}
	if n.Inode.Type == entry.Link {
		return
	}
	if n.Inode.names++; n.Inode.names == 1 || n.IsDir() {
		r.Inodes++
		r.Size += diskUsage(n.Inode)
	}
}

// prune removes directories that only whiteouts asked for, where lower layers have nothing left that the whiteouts
// could remove: a whiteout of nothing makes no directory.
func (f *finisher) prune(ctx context.Context, n *Node, hidden bool) error {
	for name, c := range n.children {
		if _, gone := n.whiteouts[name]; !c.whiteoutsOnly || !hidden && !gone {
			continue
		}
		if _, err := f.clear(ctx, c.Path(), n, name); err != nil {
			return err
		}
	}
	return nil
}

// whiteouts keeps only those whiteouts of a directory that are written: those of names that the layer does not have. A
// directory that has such a name is a new one, so that it becomes opaque and takes no attributes from the removed one.
func (f *finisher) whiteouts(n *Node, hidden bool) {
	for name := range n.whiteouts {
		c := n.children[name]
		if c != nil || hidden {
			f.order.rewritten = true
			delete(n.whiteouts, name)
		}
		if c != nil && c.IsDir() {
			c.replaced, c.implied = true, false
		}
	}
	f.result.Count += len(n.whiteouts)
	f.result.Inodes += int64(len(n.whiteouts))
	f.result.Whiteouts = f.result.Whiteouts || len(n.whiteouts) > 0
}

// diskUsage returns what an inode takes on disk in bytes, as Result.Size counts it.
func diskUsage(i *Inode) int64 {
	const block = 4096
	switch i.Type {
	case entry.Dir:
		return block
	case entry.File:
		return (i.Size + block - 1) / block * block
	}
	return 0
}
