package unpack

import (
	"path"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// tooLong reports whether the path of an entry is too long. The prefix of a marker does not count: the path that it
// removes has none.
func (x *extractor) tooLong(name string) bool {
	n := len(name)
	if n > x.limits.Path && strings.HasPrefix(path.Base(name), entry.WhiteoutPrefix) {
		n -= len(entry.WhiteoutPrefix)
	}
	return n > x.limits.Path
}

// whiteout notes what a marker asks for. What comes of it in this layer is decided at the end.
func (x *extractor) whiteout(name, parent, base string) error {
	hidden := strings.TrimPrefix(base, entry.WhiteoutPrefix)
	switch {
	case base == entry.OpaqueMarker:
	case strings.HasPrefix(base, entry.AUFSPrefix):
		return nil
	case hidden == "", hidden == ".", hidden == "..":
		return invalid(name, "a whiteout of nothing")
	}
	if base == entry.OpaqueMarker {
		hidden = ""
	}
	at, reason := x.resolve(parent)
	if reason != "" {
		return invalid(name, "%s", reason)
	}
	if at.blocked != nil { // there is nothing in it, unless it is a hard link to a lower symlink
		x.sayMarker(parent, hidden, nil)
		return nil
	}
	dir, err := x.makeDirs(name, at, true)
	if err != nil {
		return err
	}
	if at.followed {
		x.sayMarker(parent, hidden, nil)
	} else {
		x.sayMarker(parent, hidden, dir)
	}
	if hidden == "" {
		dir.marked = true
		return nil
	}
	if dir.below(len(hidden)) > x.limits.Path {
		return invalid(name, "resolves to a path of more than %d bytes", x.limits.Path)
	}
	if len(hidden) > maxName { // the marker may be longer than any file's name: it is not a file on disk
		return invalid(name, "a component of more than %d bytes", maxName)
	}
	dir.hide(hidden, whiteout{seq: x.seq})
	if err := x.hold(name, len(hidden)); err != nil {
		return err
	}
	return x.keep(name, dir.below(len(hidden)))
}
