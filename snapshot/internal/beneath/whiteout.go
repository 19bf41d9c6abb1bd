package beneath

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// On disk, a whiteout has overlay's form: a character device 0:0. Some file systems refuse that device (overlayfs does,
// and kernels before 5.8 refuse it to ordinary users), and some have no extended attributes. There a whiteout is a
// socket of mode 0, and an opaque directory contains such a socket with the name entry.OpaqueMarker. A tar cannot
// contain sockets or that name, so nothing else in a layer looks like them. Overlay understands neither, so the record
// of a layer with them has PlainMarks set.

// IsWhiteout reports whether a node with this status is a whiteout.
func IsWhiteout(st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFSOCK:
		return st.Mode&0o7777 == 0
	}
	return false
}

// MakeWhiteout makes a whiteout of a name in dir. plain is true if overlay does not understand the whiteout.
func MakeWhiteout(dir *os.File, name string) (plain bool, err error) {
	defer runtime.KeepAlive(dir)
	return MakeWhiteoutAt(int(dir.Fd()), name)
}

// MakeWhiteoutAt is like MakeWhiteout for a directory's descriptor.
func MakeWhiteoutAt(dir int, name string) (plain bool, err error) {
	err = unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	switch err {
	case unix.EPERM, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS:
		if unix.Mknodat(dir, name, unix.S_IFSOCK, 0) == nil {
			return true, nil
		}
	}
	return false, err
}

// Marks are the properties of a directory that overlay reads from its attributes.
type Marks struct {
	// Whiteouts: the directory holds whiteouts that overlay understands. Without a mark, overlay would show them as
	// files where no lower directory merges with this one.
	Whiteouts bool
	// Opaque: the directory hides the content of the lower directories at the same path.
	Opaque bool
}

// Mark marks a directory for overlay mounts with or without the option userxattr. plain is true if overlay does not
// understand the marks.
func Mark(dir *os.File, m Marks, userXattr bool) (plain bool, err error) {
	defer runtime.KeepAlive(dir)
	if plain, err = MarkAt(int(dir.Fd()), m, OverlayPrefix(userXattr)); err != nil {
		return plain, fmt.Errorf("directory %q: %w", printable.Clip(dir.Name()), err)
	}
	return plain, nil
}

// MarkAt is like Mark for a directory's descriptor and the prefix of overlay's attributes.
func MarkAt(fd int, m Marks, prefix string) (plain bool, err error) {
	set := func(name, value string) (have bool, err error) {
		switch err := unix.Fsetxattr(fd, prefix+name, []byte(value), 0); err {
		case nil:
			return true, nil
		case unix.EOPNOTSUPP: // IsOpaque gets the same error, and then looks for the marker
			return false, nil
		default:
			return false, fmt.Errorf("xattr %q: %w", prefix+name, err)
		}
	}
	if m.Whiteouts {
		have, err := set(entry.OriginAttr, "")
		if err != nil {
			return false, err
		}
		plain = !have
	}
	if !m.Opaque {
		return plain, nil
	}
	have, err := set(entry.OpaqueAttr, "y")
	if err == nil && !have {
		err = unix.Mknodat(fd, entry.OpaqueMarker, unix.S_IFSOCK, 0)
	}
	return plain || !have, err
}

// IsOpaque reports whether the directory is opaque, by an attribute of either prefix or by a marker in it.
func IsOpaque(dir *os.File) (bool, error) {
	defer runtime.KeepAlive(dir)
	opaque, err := Inode{FD: int(dir.Fd())}.IsOpaque()
	if err != nil {
		return false, fmt.Errorf("directory %q: %w", printable.Clip(dir.Name()), err)
	}
	return opaque, nil
}

// IsOpaque reports whether the directory is opaque, as the function IsOpaque does.
func (t Inode) IsOpaque() (bool, error) {
	unsupported := false
	for _, prefix := range []string{entry.TrustedOverlay, entry.UserOverlay} {
		var buf [8]byte
		n, err := t.getXattr(prefix+entry.OpaqueAttr, buf[:])
		switch err {
		case nil:
			if string(buf[:n]) == "y" {
				return true, nil
			}
		case unix.EOPNOTSUPP:
			unsupported = true
		case unix.ENODATA, unix.ERANGE: // no value, or one that is longer than "y"
		default:
			return false, err
		}
	}
	if !unsupported {
		return false, nil
	}
	return t.hasMarker()
}

// hasMarker looks for the marker of an opaque directory, for file systems without attributes.
func (t Inode) hasMarker() (bool, error) {
	fd := t.FD
	if t.Name != "" {
		var err error
		if fd, err = OpenAt(t.FD, t.Name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return false, err
		}
		defer unix.Close(fd)
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(fd, entry.OpaqueMarker, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
		return IsWhiteout(&st), nil
	case unix.ENOENT:
		return false, nil
	default:
		return false, err
	}
}

// OverlayPrefix returns the prefix of overlay's own attributes, for mounts with or without the option userxattr.
func OverlayPrefix(userXattr bool) string {
	if userXattr {
		return entry.UserOverlay
	}
	return entry.TrustedOverlay
}
