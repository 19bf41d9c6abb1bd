package tarlayer

import (
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// place is where a path leads: an existing directory, and the components below it that the layer does not have.
type place struct {
	dir     *Node
	missing []string
	// blocked is the node at the first missing component, if it is neither a directory nor a symlink.
	blocked *Node
	// followed reports that the path leads through a symlink.
	followed bool
	// loop reports that there are too many symlinks on the way, some of which may lead elsewhere above a parent. The
	// place is then that of the last symlink that is a component of the path itself, as if that were a file.
	loop bool
}

// Path resolution is bounded as in the kernel by the number of symlinks, and, because their targets may be long, also
// by the number of components.
const (
	maxSymlinks   = 40
	maxComponents = 8192
)

// resolve follows p, which is clean and relative to the root, through the symlinks of this layer. Absolute targets
// begin at the root, and ".." of the root is the root. A ".." after a missing component removes that component.
// certain means that the path leads to the same place above every parent. If the path leads nowhere, resolve returns
// the reason as text; otherwise the reason is "".
func resolve(root *Node, p string, certain bool) (place, string) {
	at := place{dir: root}
	rest := p             // the components of p itself that are still to be followed
	last, after := at, "" // the last symlink that is a component of p, and the components from there on
	symlinks, steps := 0, 0
	for p != "" {
		var c string
		before, ofPath := p, len(p) <= len(rest)
		c, p, _ = strings.Cut(p, "/")
		if ofPath {
			rest = p
		}
		if steps++; steps > maxComponents {
			return unresolved(last, after, "too many components in symlinks", certain)
		}
		switch c {
		case "", ".":
			continue
		case "..":
			at.up()
			continue
		}
		if len(at.missing) > 0 {
			at.missing = append(at.missing, c)
			continue
		}
		next := at.dir.children[c]
		switch {
		case next == nil:
			at.missing = append(at.missing, c)
		case next.IsDir():
			at.dir = next
		case next.Inode.Type == entry.Symlink:
			if ofPath {
				last, after = place{dir: at.dir, blocked: next, followed: true, loop: true}, before
			}
			if symlinks++; symlinks > maxSymlinks {
				return unresolved(last, after, "too many levels of symlinks", certain)
			}
			at.followed = true
			target := next.Inode.Target
			if strings.HasPrefix(target, "/") {
				at.dir = root
			}
			p = target + "/" + p
		default:
			at.missing, at.blocked = append(at.missing, c), next
		}
	}
	return at, ""
}

// up follows a "..".
func (at *place) up() {
	if n := len(at.missing); n > 0 {
		if at.missing = at.missing[:n-1]; n == 1 {
			at.blocked = nil
		}
	} else if at.dir.parent != nil {
		at.dir = at.dir.parent
	}
}

// unresolved returns the place of a path that goes through too many symlinks, and the reason why it leads nowhere. If
// the path is not certain, it may lead elsewhere above a parent: then there is no reason, and the last symlink is
// treated as a file, with after, the path's components from that symlink on, as missing components.
func unresolved(last place, after, reason string, certain bool) (place, string) {
	if certain {
		return last, reason
	}
	last.missing = strings.Split(after, "/")
	return last, ""
}
