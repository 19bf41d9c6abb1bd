package tarlayer

import (
	"context"
	"maps"
	"path"
	"strings"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// link adds a name to an inode of this layer, or records a link to a lower layer. If what the entries did so far
// depends on the layers below, no target is refused here: the fix-up knows where it leads.
func (x *reader) link(ctx context.Context, name string, dir *Node, base string, ino *Inode) error {
	at, reason := x.resolve(path.Dir(ino.Target))
	if reason != "" {
		return invalid(name, "hard link to %q: %s", printable.Clip(ino.Target), reason)
	}
	certain := !x.order.dependent
	x.order.rewritten = x.order.rewritten || !certain
	targetBase := path.Base(ino.Target)
	var old *Node
	if len(at.missing) == 0 {
		old = at.dir.children[targetBase]
	}
	if certain {
		if reason := refusal(dir, base, at, old); reason != "" {
			return invalid(name, "hard link to %q, %s", printable.Clip(ino.Target), reason)
		}
	}
	if old == nil || old.IsDir() || old.Inode.Type == entry.Link || refusal(dir, base, at, old) != "" {
		to := strings.TrimPrefix(path.Join(at.dir.Path(), path.Join(at.missing...), targetBase), "./")
		if old != nil && old.Inode.Type == entry.Link {
			to = old.Inode.Target
		}
		return x.lowerLink(ctx, name, dir, base, ino, to, certain)
	}
	return x.linkTo(ctx, name, dir, base, ino, old)
}

// linkTo makes a name of the inode that has the name old, with the attributes of the link's header.
func (x *reader) linkTo(ctx context.Context, name string, dir *Node, base string, ino *Inode, old *Node) error {
	if err := x.w.Await(old.Inode); err != nil {
		return err
	}
	merged := *old.Inode
	merged.merge(ino)
	if _, err := x.clear(ctx, name, dir, base); err != nil {
		return err
	}
	n, err := x.add(name, dir, base, old.Inode)
	if err != nil || old.Inode.omitted {
		return err
	}
	if err := x.w.Link(old, n); err != nil {
		return entryError(name, err)
	}
	if sameAttrs(&merged, old.Inode) {
		return nil
	}
	x.recordFirstAttrs(old.Inode)
	*old.Inode = merged
	if err := x.w.SetAttrs(n); err != nil {
		return entryError(name, err)
	}
	// The recorded header has the attributes as the Writer keeps them.
	ino.Mode, ino.Sec, ino.Nsec = old.Inode.Mode, old.Inode.Sec, old.Inode.Nsec
	return nil
}

// refusal returns why the node old, to which the place at and a name lead, cannot get the name base in dir, as far as
// this layer shows. It returns "" if it can.
func refusal(dir *Node, base string, at place, old *Node) string {
	switch {
	case at.blocked != nil:
		return "which does not exist"
	case old == nil:
		return ""
	case old.IsDir():
		return "which is a directory"
	case old.parent == dir && old.name == base:
		return "which is its own name"
	case dir.children[base] != nil && old.within(dir.children[base]):
		return "which lies in what it replaces"
	}
	return ""
}

// merge overwrites the inode's attributes by those of a hard link's header. Archivers leave extended attributes out of
// such headers, so that a missing one removes nothing.
func (i *Inode) merge(hdr *Inode) {
	i.Mode, i.UID, i.GID, i.Sec, i.Nsec = hdr.Mode, hdr.UID, hdr.GID, hdr.Sec, hdr.Nsec
	if i.Type == entry.Symlink {
		i.Mode = symlinkMode
	}
	if len(hdr.Xattrs) == 0 {
		return
	}
	xattrs := maps.Clone(i.Xattrs)
	for k, v := range hdr.Xattrs {
		if !entry.KeepsXattr(k, i.Type) {
			continue
		}
		if xattrs == nil {
			xattrs = make(map[string]string)
		}
		xattrs[k] = v
	}
	i.Xattrs = xattrs
}

func sameAttrs(a, b *Inode) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Sec == b.Sec && a.Nsec == b.Nsec &&
		maps.Equal(a.Xattrs, b.Xattrs)
}

// lowerLink records a hard link to the path to of a lower layer. certain is true if the path does not depend on the
// layers below.
func (x *reader) lowerLink(
	ctx context.Context, name string, dir *Node, base string, ino *Inode, to string, certain bool,
) error {
	if certain {
		if lowerHidden(x.root, to) {
			return invalid(name, "hard link to %q, which the layer removes", printable.Clip(ino.Target))
		}
		if int(dir.length)+len(base) == len(to) && path.Join(dir.Path(), base) == to {
			return invalid(name, "hard link to %q, which is its own name", printable.Clip(ino.Target))
		}
	}
	x.order.dependent, x.order.rewritten = true, true
	if _, err := x.clear(ctx, name, dir, base); err != nil {
		return err
	}
	if to != ino.Target {
		resolved := *ino
		ino, resolved.Target = &resolved, to
	}
	_, err := x.add(name, dir, base, ino)
	return err
}

// lowerHidden reports whether the layer hides what the layers below have at a path.
func lowerHidden(root *Node, target string) bool {
	n := root
	for rest := target; ; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if _, hidden := n.whiteouts[c]; hidden || n.Opaque() {
			return true
		}
		if n = n.children[c]; n == nil || rest == "" || !n.IsDir() {
			return false
		}
	}
}
