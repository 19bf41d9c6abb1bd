package beneath

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// ReadEntry returns the entry at a path below root, without the hash of a file's content and without its other names.
// The caller makes sure that no component of the path but the last is a symlink. Errors wrap those of the system calls.
func ReadEntry(root *os.File, path string) (*entry.Entry, error) {
	defer runtime.KeepAlive(root)
	t := At(int(root.Fd()), path)
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return nil, fmt.Errorf("%q: %w", printable.Clip(path), err)
	}
	e, err := EntryOf(path, &st)
	if err != nil || e.Type == entry.Whiteout {
		return &e, err
	}
	if e.Xattrs, err = t.Xattrs(e.Type); err == nil {
		switch e.Type {
		case entry.Dir:
			e.Opaque, err = t.IsOpaque()
		case entry.Symlink:
			e.Target, err = t.Readlink()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", printable.Clip(path), err)
	}
	return &e, nil
}

// EntryOf returns the entry of a path with the fields that its status contains. It returns an error for a type that no
// layer has, such as a socket.
func EntryOf(path string, st *unix.Stat_t) (entry.Entry, error) {
	if IsWhiteout(st) {
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
		return e, fmt.Errorf("%q: type %#o cannot be in a layer", printable.Clip(path), st.Mode&unix.S_IFMT)
	}
	e.Mode, e.UID, e.GID = st.Mode&0o7777, st.Uid, st.Gid
	e.Sec, e.Nsec = int64(st.Mtim.Sec), int64(st.Mtim.Nsec)
	return e, nil
}

// Readlink returns the target of a symlink. The Inode must have a name.
func (t Inode) Readlink() (string, error) {
	for buf := make([]byte, 256); ; buf = make([]byte, 4*len(buf)) {
		n, err := unix.Readlinkat(t.FD, t.Name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}
