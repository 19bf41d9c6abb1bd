package unpack

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
)

// Names of the extended attributes that overlay keeps for itself. Mounts with the option userxattr use the user prefix.
const (
	TrustedOverlay = "trusted.overlay."
	UserOverlay    = "user.overlay."
	// OpaqueAttr after the prefix, with the value "y", marks an opaque directory.
	OpaqueAttr = "opaque"
	// OriginAttr after the prefix, empty, makes overlay look for whiteouts in a directory that nothing merges with.
	OriginAttr = "origin"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// keepXattr tells whether the attribute is part of a layer. Overlay's own, labels and measurements of the machine that made
// the layer, and namespaces that no Linux filesystem has are not.
func keepXattr(name string, t Type) bool {
	switch name {
	case "security.selinux", "security.ima", "security.evm":
		return false
	case aclAccess:
		return t != Symlink
	case aclDefault:
		return t == Dir
	}
	switch {
	case strings.HasPrefix(name, TrustedOverlay), strings.HasPrefix(name, UserOverlay):
		return false
	case strings.HasPrefix(name, "user."):
		return t == Dir || t == File || t == Link // the kernel allows it nowhere else
	}
	return strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "security.")
}

// target is an inode to change or to look at: by descriptor when name is empty, else by name in the directory fd, never
// following a symlink there.
type target struct {
	fd   int
	name string
}

func (t target) stat(st *unix.Stat_t) error {
	if t.name == "" {
		return unix.Fstat(t.fd, st)
	}
	return unix.Fstatat(t.fd, t.name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func (t target) chown(uid, gid uint32) error {
	if t.name == "" {
		return unix.Fchown(t.fd, int(uid), int(gid))
	}
	return unix.Fchownat(t.fd, t.name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
}

func (t target) chmod(mode uint32) error {
	if t.name == "" {
		return unix.Fchmod(t.fd, mode)
	}
	err := unix.Fchmodat(t.fd, t.name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.EOPNOTSUPP && err != unix.ENOSYS && err != unix.EPERM {
		return err
	}
	// Before Linux 6.6, and where a seccomp filter does not permit what it does not know: through a descriptor that can do
	// nothing but name the inode.
	fd, err := openat(t.fd, t.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
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
	return unix.Fchmodat(t.fd, t.name, mode, 0) // no /proc: a moment ago it was no symlink
}

func (t target) setTimes(sec, nsec int64) error {
	ts := [2]unix.Timespec{}
	for i := range ts {
		ts[i].Sec, ts[i].Nsec = timespec(sec, nsec)
	}
	if t.name != "" {
		return unix.UtimesNanoAt(t.fd, t.name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(t.fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// proc names the inode for the xattr calls, which take no directory descriptor: the magic link leads to the descriptor
// itself and the one component after it is not followed.
func (t target) proc() string { return "/proc/self/fd/" + strconv.Itoa(t.fd) + "/" + t.name }

func (t target) setXattr(name, value string) error {
	if t.name == "" {
		return unix.Fsetxattr(t.fd, name, []byte(value), 0)
	}
	return t.viaProc(func(path string) error { return unix.Lsetxattr(path, name, []byte(value), 0) })
}

func (t target) removeXattr(name string) error {
	if t.name == "" {
		return unix.Fremovexattr(t.fd, name)
	}
	return t.viaProc(func(path string) error { return unix.Lremovexattr(path, name) })
}

func (t target) getXattr(name string, buf []byte) (n int, err error) {
	if t.name == "" {
		return unix.Fgetxattr(t.fd, name, buf)
	}
	err = t.viaProc(func(path string) (err error) {
		n, err = unix.Lgetxattr(path, name, buf)
		return err
	})
	return n, err
}

func (t target) listXattrs(buf []byte) (n int, err error) {
	if t.name == "" {
		return unix.Flistxattr(t.fd, buf)
	}
	err = t.viaProc(func(path string) (err error) {
		n, err = unix.Llistxattr(path, buf)
		return err
	})
	return n, err
}

// xattrs reads the attributes that are part of a layer; nil when there are none.
func (t target) xattrs(typ Type) (map[string]string, error) {
	list, err := growing(t.listXattrs)
	if err == unix.EOPNOTSUPP || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var attrs map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		if !keepXattr(name, typ) {
			continue
		}
		value, err := growing(func(buf []byte) (int, error) { return t.getXattr(name, buf) })
		if err == unix.ENODATA {
			continue // removed meanwhile
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

// growing calls a system call that fails with ERANGE while its buffer is too small.
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

// apply sets the attributes of a new inode in the one order that keeps all of them: owner, xattrs (a chown drops
// capabilities), mode (a chown drops setuid), times. owner is what the inode has already, and mode what it probably has.
// Xattrs that the file system does not have are dropped from e.
func (t target) apply(e *Entry, ownerUID, ownerGID, mode uint32) error {
	if e.UID != ownerUID || e.GID != ownerGID {
		if err := t.chown(e.UID, e.GID); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	for name, value := range e.Xattrs {
		switch err := t.setXattr(name, value); err {
		case nil:
		case unix.EOPNOTSUPP:
			e.dropXattr(name)
		default:
			return &xattrError{name, err}
		}
	}
	if e.Type != Symlink && (mode != e.Mode || !t.hasMode(mode)) {
		if err := t.chmod(e.Mode); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if err := t.setTimes(e.Sec, e.Nsec); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// hasMode looks, which costs less than a change. No umask is taken for granted: it is the process's, and anyone in it may change it
// for a moment.
func (t target) hasMode(mode uint32) bool {
	var st unix.Stat_t
	return t.stat(&st) == nil && st.Mode&0o7777 == mode
}

// xattrError lets the extractor tell values that the kernel finds malformed from faults of the filesystem.
type xattrError struct {
	name string
	err  error
}

func (e *xattrError) Error() string { return fmt.Sprintf("xattr %q: %v", clip(e.name), e.err) }
func (e *xattrError) Unwrap() error { return e.err }

func malformedXattr(err error) bool {
	var xe *xattrError
	return errors.As(err, &xe) && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE))
}

// applyExact makes an existing inode's attributes those of e, and removes xattrs that e does not have.
func (t target) applyExact(e *Entry) error {
	var st unix.Stat_t
	if err := t.stat(&st); err != nil {
		return err
	}
	have, err := t.xattrs(e.Type)
	if err != nil {
		return err
	}
	if maps.Equal(have, e.Xattrs) && st.Uid == e.UID && st.Gid == e.GID {
		have = nil
	} else if e.Type != Symlink && st.Mode&0o700 != 0o700 && os.Geteuid() != 0 {
		if err := t.chmod(e.Mode | 0o700); err != nil { // user.* wants the right to write
			return fmt.Errorf("mode: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := e.Xattrs[name]; ok {
			continue
		}
		if err := t.removeXattr(name); err != nil && err != unix.ENODATA {
			return &xattrError{name, err}
		}
	}
	return t.apply(e, st.Uid, st.Gid, st.Mode&0o7777)
}

// SetAttrs gives name in dir, which exists and is of e's type, the owner, xattrs, mode and times of e, and removes xattrs
// that e does not have; overlay's own stay. Xattrs that the file system does not have are dropped from e. A symlink is
// not followed. Times of a directory have to be set after its content. Errors are those of the system calls, with
// context.
func SetAttrs(dir *os.File, name string, e *Entry) error {
	defer runtime.KeepAlive(dir)
	t := target{int(dir.Fd()), name}
	if e.Type == Dir || e.Type == File {
		// By descriptor where that works: everything then happens to one inode.
		fd, err := openat(t.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			t = target{fd: fd}
		}
	}
	if err := t.applyExact(e); err != nil {
		return fmt.Errorf("attributes of %q: %w", clip(name), err)
	}
	return nil
}

// SetAttrsOf is SetAttrs for an open file or directory.
func SetAttrsOf(f *os.File, e *Entry) error {
	defer runtime.KeepAlive(f)
	if err := (target{fd: int(f.Fd())}).applyExact(e); err != nil {
		return fmt.Errorf("attributes of %q: %w", clip(f.Name()), err)
	}
	return nil
}

// Chmod changes the mode of a name in dir. A symbolic link is not followed. The error is that of the system call.
func Chmod(dir *os.File, name string, mode uint32) error {
	defer runtime.KeepAlive(dir)
	return target{int(dir.Fd()), name}.chmod(mode)
}
