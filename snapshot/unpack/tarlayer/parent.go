package tarlayer

import (
	"context"
	"strings"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// parent returns the directory of the path parent, which it makes if the layer does not have it. followed reports that
// a symlink of this layer leads there.
func (x *reader) parent(ctx context.Context, name, parent string) (dir *Node, followed bool, err error) {
	if x.last != nil && parent == x.lastPath {
		return x.last, false, nil
	}
	at, reason := x.resolve(parent)
	if reason != "" {
		return nil, false, invalid(name, "%s", reason)
	}
	dir, err = x.makeDirs(ctx, name, at, false)
	if err != nil {
		return nil, false, err
	}
	if !at.followed {
		x.last, x.lastPath = dir, parent
	}
	return dir, at.followed, nil
}

// makeDirs makes the implied directories of a place, for a whiteout in it or for another entry.
func (x *reader) makeDirs(ctx context.Context, name string, at place, forWhiteout bool) (*Node, error) {
	dir := at.dir
	for _, c := range at.missing {
		if err := x.countEntry(name, 0); err != nil {
			return nil, err
		}
		n, err := x.mkdir(ctx, name, dir, c, x.impliedInode())
		if err != nil {
			return nil, err
		}
		n.implied, n.whiteoutsOnly = !n.replaced, forWhiteout
		x.order.dependent = x.order.dependent || n.implied && !n.startsEmpty
		dir = n
	}
	return dir, nil
}

// mkdir makes a directory in place of anything else.
func (x *reader) mkdir(ctx context.Context, name string, dir *Node, base string, ino *Inode) (*Node, error) {
	_, removed := dir.whiteouts[base]
	replaced, err := x.clear(ctx, name, dir, base)
	if err != nil {
		return nil, err
	}
	n, err := x.add(name, dir, base, ino)
	if err != nil {
		return nil, err
	}
	n.replaced, n.startsEmpty = replaced, replaced || removed || dir.marked || dir.startsEmpty
	return n, entryError(name, x.w.Mkdir(n))
}

// add puts an inode into the tree.
func (x *reader) add(name string, dir *Node, base string, ino *Inode) (*Node, error) {
	switch {
	case strings.HasPrefix(base, entry.AUFSPrefix): // a symlink led there
		return nil, invalid(name, "%q is a name of whiteouts", printable.Clip(base))
	case len(base) > maxName:
		return nil, invalid(name, "a component of more than %d bytes", maxName)
	}
	n := dir.child(base, ino)
	if int(n.length) > x.limits.Path {
		return nil, invalid(name, "resolves to a path of more than %d bytes", x.limits.Path)
	}
	n.seq = x.seq
	if err := x.countStrings(name, len(base)+len(ino.Target)); err != nil {
		return nil, err
	}
	return n, x.countMetadata(name, int(n.length))
}

// clear removes the node at a path, if there is one, and reports whether there was.
func (x *reader) clear(ctx context.Context, name string, dir *Node, base string) (bool, error) {
	old := dir.children[base]
	if old == nil {
		return false, nil
	}
	x.last, x.order.rewritten = nil, true
	aside, err := x.setAside(old)
	if err == nil && old.Inode.written() && !aside {
		err = x.w.Remove(ctx, old)
	}
	if err != nil {
		return false, entryError(name, err)
	}
	delete(dir.children, base)
	return true, nil
}
