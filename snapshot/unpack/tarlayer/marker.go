package tarlayer

import (
	"context"
	"path"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// tooLong reports whether the path of an entry is too long. The prefix of a marker does not count, because the path
// that the marker removes does not have it.
func (x *reader) tooLong(name string) bool {
	n := len(name)
	if n > x.limits.Path && strings.HasPrefix(path.Base(name), entry.WhiteoutPrefix) {
		n -= len(entry.WhiteoutPrefix)
	}
	return n > x.limits.Path
}

// whiteout records what a marker removes. Its effect in this layer is decided at the end.
func (x *reader) whiteout(ctx context.Context, name, parent, base string) error {
	hidden := strings.TrimPrefix(base, entry.WhiteoutPrefix) // "": all in the directory
	switch {
	case base == entry.OpaqueMarker:
		hidden = ""
	case strings.HasPrefix(base, entry.AUFSPrefix):
		return nil
	case hidden == "", hidden == ".", hidden == "..":
		return invalid(name, "a whiteout of nothing")
	}
	at, reason := x.resolve(parent)
	if reason != "" {
		return invalid(name, "%s", reason)
	}
	if at.blocked != nil { // nothing lies in it, unless it is a hard link to a symlink of a lower layer
		x.recordMarker(parent, hidden, nil)
		return nil
	}
	dir, err := x.makeDirs(ctx, name, at, true)
	if err != nil {
		return err
	}
	if at.followed {
		x.recordMarker(parent, hidden, nil)
	} else {
		x.recordMarker(parent, hidden, dir)
	}
	if hidden == "" {
		dir.marked = true
		return nil
	}
	if dir.lengthOf(len(hidden)) > x.limits.Path {
		return invalid(name, "resolves to a path of more than %d bytes", x.limits.Path)
	}
	if len(hidden) > maxName { // the marker itself may be longer: it is no file on disk
		return invalid(name, "a component of more than %d bytes", maxName)
	}
	dir.hide(hidden, whiteout{seq: x.seq})
	if err := x.countStrings(name, len(hidden)); err != nil {
		return err
	}
	return x.countMetadata(name, dir.lengthOf(len(hidden)))
}
