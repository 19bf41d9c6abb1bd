package beneath

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Inode identifies an inode to be read or changed. If Name is empty, FD is a descriptor of the inode itself.
// Otherwise FD is a directory that contains Name, and if Name is a symlink, the inode is the link itself.
type Inode struct {
	FD   int
	Name string
}

// At returns the inode with a name in the directory fd.
func At(fd int, name string) Inode { return Inode{FD: fd, Name: name} }

// Stat reads the inode's status into st.
func (t Inode) Stat(st *unix.Stat_t) error {
	if t.Name == "" {
		return unix.Fstat(t.FD, st)
	}
	return unix.Fstatat(t.FD, t.Name, st, unix.AT_SYMLINK_NOFOLLOW)
}

// Chown changes the owner.
func (t Inode) Chown(uid, gid uint32) error {
	if t.Name == "" {
		return unix.Fchown(t.FD, int(uid), int(gid))
	}
	return unix.Fchownat(t.FD, t.Name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
}

// Chmod changes the permissions. It returns unix.EOPNOTSUPP for a symlink.
func (t Inode) Chmod(mode uint32) error {
	if t.Name == "" {
		return unix.Fchmod(t.FD, mode)
	}
	err := unix.Fchmodat(t.FD, t.Name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.EOPNOTSUPP && err != unix.ENOSYS && err != unix.EPERM {
		return err
	}
	// Linux before 6.6 does not have the system call, and a seccomp filter may refuse it. Use an O_PATH descriptor.
	fd, err := OpenAt(t.FD, t.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode); err != unix.ENOENT {
		return err
	}
	// /proc is not mounted. Fchmodat follows symlinks, but the inode was not one in Fstat above.
	return unix.Fchmodat(t.FD, t.Name, mode, 0)
}

// SetTimes sets the access time and the modification time.
func (t Inode) SetTimes(sec, nsec int64) error {
	ts := [2]unix.Timespec{}
	for i := range ts {
		ts[i].Sec, ts[i].Nsec = timespec(sec, nsec)
	}
	if t.Name != "" {
		return unix.UtimesNanoAt(t.FD, t.Name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(t.FD), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// proc returns a path of the inode for the xattr calls, which take no directory descriptor. The magic link leads to the
// directory of the descriptor itself, and the l* calls do not follow the last component.
func (t Inode) proc() string { return "/proc/self/fd/" + strconv.Itoa(t.FD) + "/" + t.Name }

func (t Inode) setXattr(name, value string) error {
	if t.Name == "" {
		return unix.Fsetxattr(t.FD, name, []byte(value), 0)
	}
	return t.viaProc(func(path string) error { return unix.Lsetxattr(path, name, []byte(value), 0) })
}

// RemoveXattr removes an extended attribute.
func (t Inode) RemoveXattr(name string) error {
	if t.Name == "" {
		return unix.Fremovexattr(t.FD, name)
	}
	return t.viaProc(func(path string) error { return unix.Lremovexattr(path, name) })
}

func (t Inode) getXattr(name string, buf []byte) (n int, err error) {
	if t.Name == "" {
		return unix.Fgetxattr(t.FD, name, buf)
	}
	err = t.viaProc(func(path string) (err error) {
		n, err = unix.Lgetxattr(path, name, buf)
		return err
	})
	return n, err
}

func (t Inode) listXattrs(buf []byte) (n int, err error) {
	if t.Name == "" {
		return unix.Flistxattr(t.FD, buf)
	}
	err = t.viaProc(func(path string) (err error) {
		n, err = unix.Llistxattr(path, buf)
		return err
	})
	return n, err
}

// Xattrs returns those extended attributes of the inode that are part of a layer, nil if there are none. typ is the
// type of the inode.
func (t Inode) Xattrs(typ entry.Type) (map[string]string, error) {
	list, err := growing(t.listXattrs)
	if err == unix.EOPNOTSUPP || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var attrs map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		if !entry.KeepsXattr(name, typ) {
			continue
		}
		value, err := growing(func(buf []byte) (int, error) { return t.getXattr(name, buf) })
		if err == unix.ENODATA {
			continue // it was removed in the meantime
		}
		if err != nil {
			return nil, fmt.Errorf("xattr %q: %w", name, err)
		}
		if attrs == nil {
			attrs = make(map[string]string)
		}
		attrs[name] = value
	}
	return attrs, nil
}

// growing repeats a system call with larger buffers while it returns ERANGE.
func growing(call func([]byte) (int, error)) (string, error) {
	var small [256]byte
	for buf := small[:]; ; buf = make([]byte, 4*len(buf)) {
		n, err := call(buf)
		if err == unix.ERANGE && len(buf) < 1<<20 {
			continue
		}
		if err != nil {
			return "", err
		}
		return string(buf[:n]), nil
	}
}

// Apply gives a new inode the attributes of e. It sets first the owner, because a chown drops capabilities and setuid,
// then xattrs, mode and times. ownerUID and ownerGID are the current owner; mode is the mode that the inode is expected
// to have, which Apply checks. Xattrs that the file system does not support are removed from e.
func (t Inode) Apply(e *entry.Entry, ownerUID, ownerGID, mode uint32) error {
	if e.UID != ownerUID || e.GID != ownerGID {
		if err := t.Chown(e.UID, e.GID); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	for name, value := range e.Xattrs {
		switch err := t.setXattr(name, value); err {
		case nil:
		case unix.EOPNOTSUPP:
			e.DropXattr(name)
		default:
			return &xattrError{name, err}
		}
	}
	if e.Type != entry.Symlink && (mode != e.Mode || !t.hasMode(mode)) {
		if err := t.Chmod(e.Mode); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if err := t.SetTimes(e.Sec, e.Nsec); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// hasMode reports whether the inode has the mode. Reading a mode costs less than changing it. The mode cannot be
// derived from the umask, because any part of the program may change the umask of the process for a moment.
func (t Inode) hasMode(mode uint32) bool {
	var st unix.Stat_t
	return t.Stat(&st) == nil && st.Mode&0o7777 == mode
}

// xattrError is an error of setting or removing an extended attribute. See IsMalformedXattr.
type xattrError struct {
	name string
	err  error
}

func (e *xattrError) Error() string {
	return fmt.Sprintf("xattr %q: %v", printable.Clip(e.name), e.err)
}
func (e *xattrError) Unwrap() error { return e.err }

// IsMalformedXattr reports whether the kernel refused the value of an extended attribute as malformed.
func IsMalformedXattr(err error) bool {
	var xe *xattrError
	return errors.As(err, &xe) && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE))
}

// ApplyExact gives an existing inode the attributes of e, and removes those xattrs of a layer that e does not have.
func (t Inode) ApplyExact(e *entry.Entry) error {
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return err
	}
	have, err := t.Xattrs(e.Type)
	if err != nil {
		return err
	}
	if maps.Equal(have, e.Xattrs) && st.Uid == e.UID && st.Gid == e.GID {
		have = nil
	} else if e.Type != entry.Symlink && st.Mode&0o700 != 0o700 && os.Geteuid() != 0 {
		if err := t.Chmod(e.Mode | 0o700); err != nil { // changing user.* attributes needs the right to write
			return fmt.Errorf("mode: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := e.Xattrs[name]; ok {
			continue
		}
		if err := t.RemoveXattr(name); err != nil && err != unix.ENODATA {
			return &xattrError{name, err}
		}
	}
	return t.Apply(e, st.Uid, st.Gid, st.Mode&0o7777)
}

// SetAttrs gives name in dir the owner, xattrs, mode and times of e. name must exist and have the type of e; if it is
// a symlink, the link itself is changed. Xattrs that e does not have are removed, except those of overlay. Xattrs
// that the file system does not support are removed from e. Call SetAttrs for a directory after its content was made,
// because making content changes its times. Errors wrap those of the system calls.
func SetAttrs(dir *os.File, name string, e *entry.Entry) error {
	defer runtime.KeepAlive(dir)
	t := Inode{int(dir.Fd()), name}
	if e.Type == entry.Dir || e.Type == entry.File {
		// Use a descriptor if possible, so that all changes apply to the same inode.
		fd, err := OpenAt(t.FD, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			t = Inode{FD: fd}
		}
	}
	if err := t.ApplyExact(e); err != nil {
		return fmt.Errorf("attributes of %q: %w", printable.Clip(name), err)
	}
	return nil
}

// SetAttrsOf is like SetAttrs for an open file or directory.
func SetAttrsOf(f *os.File, e *entry.Entry) error {
	defer runtime.KeepAlive(f)
	if err := (Inode{FD: int(f.Fd())}).ApplyExact(e); err != nil {
		return fmt.Errorf("attributes of %q: %w", printable.Clip(f.Name()), err)
	}
	return nil
}

// Chmod changes the mode of a name in dir. It returns unix.EOPNOTSUPP for a symlink, and the errors of the system call.
func Chmod(dir *os.File, name string, mode uint32) error {
	defer runtime.KeepAlive(dir)
	return Inode{int(dir.Fd()), name}.Chmod(mode)
}
