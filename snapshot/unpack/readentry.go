package unpack

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// ReadEntry reads what is at a path below root as ReadTree does, but neither a file's content nor its other names. No
// component of the path but the last may be a symlink; that is the caller's to know. Errors are those of the system calls.
func ReadEntry(root *os.File, path string) (*entry.Entry, error) {
	defer runtime.KeepAlive(root)
	t := beneath.At(int(root.Fd()), path)
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return nil, fmt.Errorf("%q: %w", printable.Clip(path), err)
	}
	e, err := statEntry(path, &st)
	if err != nil || e.Type == entry.Whiteout {
		return &e, err
	}
	if e.Xattrs, err = t.Xattrs(e.Type); err == nil {
		switch e.Type {
		case entry.Dir:
			e.Opaque, err = t.IsOpaque()
		case entry.Symlink:
			e.Target, err = readlink(t)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", printable.Clip(path), err)
	}
	return &e, nil
}

// statEntry is the entry that a status tells of.
func statEntry(path string, st *unix.Stat_t) (entry.Entry, error) {
	if beneath.IsWhiteout(st) {
		return entry.Entry{Path: path, Type: entry.Whiteout}, nil
	}
	e := entry.Entry{Path: path}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = entry.Dir
	case unix.S_IFREG:
		e.Type, e.Size = entry.File, st.Size
	case unix.S_IFLNK:
		e.Type = entry.Symlink
	case unix.S_IFIFO:
		e.Type = entry.Fifo
	case unix.S_IFCHR:
		e.Type, e.Rdev = entry.Char, uint64(st.Rdev)
	case unix.S_IFBLK:
		e.Type, e.Rdev = entry.Block, uint64(st.Rdev)
	default:
		return e, fmt.Errorf("%q: type %#o is not one of a layer", printable.Clip(path), st.Mode&unix.S_IFMT)
	}
	e.Mode, e.UID, e.GID = st.Mode&0o7777, st.Uid, st.Gid
	e.Sec, e.Nsec = int64(st.Mtim.Sec), int64(st.Mtim.Nsec)
	return e, nil
}
