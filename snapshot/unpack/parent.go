package unpack

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// parent is the directory that a path's last component lies in, and whether a symlink of this layer leads there.
func (x *extractor) parent(name, parent string) (dir *node, followed bool, err error) {
	if x.last != nil && parent == x.lastPath {
		return x.last, false, nil
	}
	at, reason := x.resolve(parent)
	if reason != "" {
		return nil, false, invalid(name, "%s", reason)
	}
	dir, err = x.makeDirs(name, at, false)
	if err != nil {
		return nil, false, err
	}
	if !at.followed {
		x.last, x.lastPath = dir, parent
	}
	return dir, at.followed, nil
}

// makeDirs creates the implied directories of a place, for a whiteout in it or for an entry.
func (x *extractor) makeDirs(name string, at place, bare bool) (*node, error) {
	dir := at.dir
	for _, c := range at.missing {
		if err := x.charge(name, 0); err != nil {
			return nil, err
		}
		n, err := x.mkdir(name, dir, c, x.implied())
		if err != nil {
			return nil, err
		}
		n.implied, n.bare = !n.fresh, bare
		x.order.depends = x.order.depends || n.implied && !n.settled
		dir = n
	}
	return dir, nil
}

// mkdir creates a directory in the place of anything else. Its attributes are set when its content is complete.
func (x *extractor) mkdir(name string, dir *node, base string, ino *inode) (*node, error) {
	_, removed := dir.whiteouts[base]
	replaced, err := x.clear(name, dir, base)
	if err != nil {
		return nil, err
	}
	fd, err := x.dirs.fd(dir)
	if err != nil {
		return nil, err
	}
	n, err := x.add(name, dir, base, ino)
	if err != nil {
		return nil, err
	}
	n.fresh, n.settled = replaced, replaced || removed || dir.marked || dir.settled
	if err := unix.Mkdirat(fd, base, 0o700); err != nil {
		return nil, ioError(name, "mkdir", err)
	}
	if x.uid != 0 { // a umask that takes rights from the owner
		if err := beneath.At(fd, base).Chmod(0o700); err != nil {
			return nil, ioError(name, "mode", err)
		}
	}
	return n, nil
}

// add puts an inode into the tree.
func (x *extractor) add(name string, dir *node, base string, ino *inode) (*node, error) {
	switch {
	case strings.HasPrefix(base, entry.AUFSPrefix): // a symlink led there
		return nil, invalid(name, "%q is a name of whiteouts", printable.Clip(base))
	case len(base) > maxName:
		return nil, invalid(name, "a component of more than %d bytes", maxName)
	}
	n := dir.child(base, ino)
	if int(n.length) > x.limits.Path {
		return nil, invalid(name, "resolves to a path of more than %d bytes", x.limits.Path)
	}
	n.seq = x.seq
	if err := x.hold(name, len(base)+len(ino.Target)); err != nil {
		return nil, err
	}
	return n, x.keep(name, int(n.length))
}

// clear removes what is at a path, if anything.
func (x *extractor) clear(name string, dir *node, base string) (bool, error) {
	old := dir.children[base]
	if old == nil {
		return false, nil
	}
	x.last, x.order.odd = nil, true
	gone, err := x.setAside(old)
	if err != nil {
		return false, err
	}
	if old.ino.onDisk() && !gone {
		fd, err := x.dirs.fd(dir)
		if err != nil {
			return false, err
		}
		if old.isDir() {
			x.dirs.purge()
			if fd, err = x.dirs.fd(dir); err == nil {
				err = beneath.RemoveAllAt(x.interrupted, fd, base, nil)
			}
		} else {
			err = unix.Unlinkat(fd, base, 0)
		}
		if err != nil {
			return false, ioError(name, "replace", err)
		}
	}
	delete(dir.children, base)
	return true, nil
}
