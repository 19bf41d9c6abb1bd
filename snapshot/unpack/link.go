package unpack

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// link adds a name to an inode of this layer, or notes a link to a lower layer.
func (x *extractor) link(name string, dir *node, base string, ino *inode) error {
	at, reason := resolve(x.root, path.Dir(ino.Target))
	if reason != "" {
		return invalid(name, "hard link to %q: %s", clip(ino.Target), reason)
	}
	if at.blocked != nil {
		return invalid(name, "hard link to %q, which is not there", clip(ino.Target))
	}
	tbase := path.Base(ino.Target)
	var old *node
	if len(at.missing) == 0 {
		old = at.dir.children[tbase]
	}
	switch {
	case old == nil:
		ino.Target = strings.TrimPrefix(path.Join(at.dir.path(), path.Join(at.missing...), tbase), "./")
		return x.lowerLink(name, dir, base, ino)
	case old.isDir():
		return invalid(name, "hard link to the directory %q", clip(ino.Target))
	case old.parent == dir && old.name == base:
		return invalid(name, "hard link to itself")
	case dir.children[base] != nil && old.within(dir.children[base]):
		return invalid(name, "hard link to %q, which lies in what it replaces", clip(ino.Target))
	}
	if old.ino.Type == Link {
		ino.Target = old.ino.Target
		return x.lowerLink(name, dir, base, ino)
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
		return ioError(name, fmt.Sprintf("link to %q", clip(ino.Target)), err)
	}
	if sameAttrs(&merged, old.ino) {
		return nil
	}
	*old.ino = merged
	e := merged.entry()
	if err := (target{to, base}).applyExact(&e); err != nil {
		return attrError(name, err)
	}
	return x.settle(name, target{to, base}, old.ino)
}

// merge puts the attributes of a hard link's header over those of the inode. Archivers leave xattrs out of such headers, so
// that a missing one removes nothing.
func (ino *inode) merge(hdr *inode) {
	ino.Mode, ino.UID, ino.GID, ino.Sec, ino.Nsec = hdr.Mode, hdr.UID, hdr.GID, hdr.Sec, hdr.Nsec
	if ino.Type == Symlink {
		ino.Mode = symlinkMode
	}
	if len(hdr.Xattrs) == 0 {
		return
	}
	xattrs := maps.Clone(ino.Xattrs)
	for k, v := range hdr.Xattrs {
		if !keepXattr(k, ino.Type) {
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

// lowerLink notes a hard link to a path of a lower layer.
func (x *extractor) lowerLink(name string, dir *node, base string, ino *inode) error {
	if reason := lowerGone(x.root, ino.Target, false); reason != "" {
		return invalid(name, "hard link to %q, %s", clip(ino.Target), reason)
	}
	if int(dir.length)+len(base) == len(ino.Target) && path.Join(dir.path(), base) == ino.Target {
		return invalid(name, "hard link to itself")
	}
	if _, err := x.clear(name, dir, base); err != nil {
		return err
	}
	_, err := x.add(name, dir, base, ino)
	return err
}

// lowerGone tells why the path of a lower layer can't be linked to: the layer removes it, or has it itself. At the end of
// the layer (final) what replaced it after the link was made no longer matters; whiteouts do, they have no order.
func lowerGone(root *node, target string, final bool) string {
	n := root
	for rest := target; ; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if _, hidden := n.whiteouts[c]; hidden || n.marked || n.fresh && !final {
			return "which the layer removes"
		}
		if n = n.children[c]; n == nil {
			return ""
		}
		if rest == "" {
			return "which the layer adds later"
		}
		if !n.isDir() {
			return ""
		}
	}
}
