package unpack

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// link adds a name to an inode of this layer, or notes a link to a lower layer. When what the entries did depends on
// the layers below, nothing is refused for its target: a fix-up knows it.
func (x *extractor) link(name string, dir *node, base string, ino *inode) error {
	at, reason := x.resolve(path.Dir(ino.Target))
	if reason != "" {
		return invalid(name, "hard link to %q: %s", printable.Clip(ino.Target), reason)
	}
	sure := !x.order.depends
	x.order.odd = x.order.odd || !sure
	tbase := path.Base(ino.Target)
	var old *node
	if len(at.missing) == 0 {
		old = at.dir.children[tbase]
	}
	if sure {
		if reason := refusal(dir, base, at, old); reason != "" {
			return invalid(name, "hard link to %q, %s", printable.Clip(ino.Target), reason)
		}
	}
	if old == nil || old.isDir() || old.ino.Type == entry.Link || refusal(dir, base, at, old) != "" {
		to := strings.TrimPrefix(path.Join(at.dir.path(), path.Join(at.missing...), tbase), "./")
		if old != nil && old.ino.Type == entry.Link {
			to = old.ino.Target
		}
		return x.lowerLink(name, dir, base, ino, to, sure)
	}
	if err := x.small.awaitOne(old.ino); err != nil {
		return err
	}
	merged := *old.ino
	merged.merge(ino)
	if _, err := x.clear(name, dir, base); err != nil {
		return err
	}
	if _, err := x.add(name, dir, base, old.ino); err != nil || old.ino.omitted {
		return err
	}
	from, err := x.dirs.fd(old.parent)
	if err != nil {
		return err
	}
	to, err := x.dirs.fd(dir)
	if err != nil {
		return err
	}
	if err := unix.Linkat(from, old.name, to, base, 0); err != nil {
		return ioError(name, fmt.Sprintf("link to %q", printable.Clip(ino.Target)), err)
	}
	if sameAttrs(&merged, old.ino) {
		return nil
	}
	x.keepBefore(old.ino)
	*old.ino = merged
	e := merged.entry()
	if err := beneath.At(to, base).ApplyExact(&e); err != nil {
		return attrError(name, err)
	}
	x.dropped.note(old.ino, &e)
	if err := x.settle(name, beneath.At(to, base), old.ino); err != nil {
		return err
	}
	ino.Mode, ino.Sec, ino.Nsec = old.ino.Mode, old.ino.Sec, old.ino.Nsec // the header, as the file system keeps it
	return nil
}

// refusal returns why old, to which the place at and a name lead, cannot get the name base in dir, as far as this layer
// shows.
func refusal(dir *node, base string, at place, old *node) string {
	switch {
	case at.blocked != nil:
		return "which does not exist"
	case old == nil:
		return ""
	case old.isDir():
		return "which is a directory"
	case old.parent == dir && old.name == base:
		return "which is its own name"
	case dir.children[base] != nil && old.within(dir.children[base]):
		return "which lies in what it replaces"
	}
	return ""
}

// merge puts the attributes of a hard link's header over those of the inode. Archivers leave xattrs out of such headers, so
// that a missing one removes nothing.
func (ino *inode) merge(hdr *inode) {
	ino.Mode, ino.UID, ino.GID, ino.Sec, ino.Nsec = hdr.Mode, hdr.UID, hdr.GID, hdr.Sec, hdr.Nsec
	if ino.Type == entry.Symlink {
		ino.Mode = symlinkMode
	}
	if len(hdr.Xattrs) == 0 {
		return
	}
	xattrs := maps.Clone(ino.Xattrs)
	for k, v := range hdr.Xattrs {
		if !entry.KeepsXattr(k, ino.Type) {
			continue
		}
		if xattrs == nil {
			xattrs = make(map[string]string)
		}
		xattrs[k] = v
	}
	ino.Xattrs = xattrs
}

func sameAttrs(a, b *inode) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Sec == b.Sec && a.Nsec == b.Nsec &&
		maps.Equal(a.Xattrs, b.Xattrs)
}

// lowerLink notes a hard link to the path to of a lower layer. sure is true if the path depends on nothing below.
func (x *extractor) lowerLink(name string, dir *node, base string, ino *inode, to string, sure bool) error {
	if sure {
		if lowerGone(x.root, to) {
			return invalid(name, "hard link to %q, which the layer removes", printable.Clip(ino.Target))
		}
		if int(dir.length)+len(base) == len(to) && path.Join(dir.path(), base) == to {
			return invalid(name, "hard link to %q, which is its own name", printable.Clip(ino.Target))
		}
	}
	x.order.depends, x.order.odd = true, true
	if _, err := x.clear(name, dir, base); err != nil {
		return err
	}
	if to != ino.Target {
		noted := *ino
		ino, noted.Target = &noted, to
	}
	_, err := x.add(name, dir, base, ino)
	return err
}

// lowerGone reports whether the layer has removed what the layers below have at a path.
func lowerGone(root *node, target string) bool {
	n := root
	for rest := target; ; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if _, hidden := n.whiteouts[c]; hidden || n.isOpaque() {
			return true
		}
		if n = n.children[c]; n == nil || rest == "" || !n.isDir() {
			return false
		}
	}
}
