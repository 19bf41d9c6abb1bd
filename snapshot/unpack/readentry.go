package unpack

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ReadEntry reads what is at a path below root as ReadTree does, but neither a file's content nor its other names. No
// component of the path but the last may be a symlink; that is the caller's to know. Errors are those of the system calls.
func ReadEntry(root *os.File, path string) (*Entry, error) {
	defer runtime.KeepAlive(root)
	t := target{int(root.Fd()), path}
	var st unix.Stat_t
	if err := t.stat(&st); err != nil {
		return nil, fmt.Errorf("%q: %w", clip(path), err)
	}
	e, err := statEntry(path, &st)
	if err != nil || e.Type == Whiteout {
		return &e, err
	}
	if e.Xattrs, err = t.xattrs(e.Type); err == nil {
		switch e.Type {
		case Dir:
			e.Opaque, err = t.opaque()
		case Symlink:
			e.Target, err = readlink(t)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", clip(path), err)
	}
	return &e, nil
}

// statEntry is the entry that a status tells of.
func statEntry(path string, st *unix.Stat_t) (Entry, error) {
	if IsWhiteout(st) {
		return Entry{Path: path, Type: Whiteout}, nil
	}
	e := Entry{Path: path}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFREG:
		e.Type, e.Size = File, st.Size
	case unix.S_IFLNK:
		e.Type = Symlink
	case unix.S_IFIFO:
		e.Type = Fifo
	case unix.S_IFCHR:
		e.Type, e.Rdev = Char, uint64(st.Rdev)
	case unix.S_IFBLK:
		e.Type, e.Rdev = Block, uint64(st.Rdev)
	default:
		return e, fmt.Errorf("%q: type %#o is not one of a layer", clip(path), st.Mode&unix.S_IFMT)
	}
	e.Mode, e.UID, e.GID = st.Mode&0o7777, st.Uid, st.Gid
	e.Sec, e.Nsec = int64(st.Mtim.Sec), int64(st.Mtim.Nsec)
	return e, nil
}
