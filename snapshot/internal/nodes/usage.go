package nodes

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
)

// DiskUsage returns the bytes of disk blocks at and below a path, as du does: each inode counts once, and blocks that
// files share (reflinks) count for each of the files. It returns 0 if the path does not exist.
func DiskUsage(ctx context.Context, path string) (bytes int64, err error) {
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case Gone(err):
		return 0, nil
	case err != nil:
		return 0, PathError("stat", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return st.Blocks * blockUnit, nil
	}
	u, err := Usage(ctx, path)
	if Gone(err) {
		return 0, nil
	}
	return u.Size, err
}

// blockUnit is the size in bytes of the blocks that stat(2) counts.
const blockUnit = 512

// Usage counts the inodes of a directory and below it, and the bytes of their blocks. It follows no symbolic links,
// so it counts nothing outside dir if a container replaces a directory by a link at the same time. Inodes that are
// removed at the same time are not counted.
func Usage(ctx context.Context, dir string) (u snapshots.Usage, err error) {
	root, err := OpenTree(dir)
	if err != nil {
		return u, err
	}
	defer root.Close()
	c := usageCounter{seen: map[[2]uint64]struct{}{}}
	if _, err := c.add(root, "."); err != nil {
		return u, err
	}
	err = eachBelow(ctx, root, c.add)
	return c.usage, err
}

// visitor is called for an entry of dir. It reports whether the entry is a directory.
type visitor func(dir *os.File, name string) (isDir bool, err error)

// eachBelow calls visit for everything below root. It leaves out what is removed at the same time, and follows no
// symbolic link.
func eachBelow(ctx context.Context, root *os.File, visit visitor) error {
	for todo := []string{"."}; len(todo) > 0; {
		interrupt.Step(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d, err := beneath.OpenDirBelow(root, rel)
		if Gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		subdirs, err := eachIn(ctx, d, visit)
		d.Close()
		if err != nil {
			return err
		}
		for _, name := range subdirs {
			todo = append(todo, path.Join(rel, name))
		}
	}
	return nil
}

// eachIn calls visit for the entries of one directory and returns the names of its subdirectories.
func eachIn(ctx context.Context, d *os.File, visit visitor) (subdirs []string, err error) {
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			isDir, err := visit(d, name)
			if err != nil && !Gone(err) {
				return nil, err
			}
			if isDir {
				subdirs = append(subdirs, name)
			}
		}
		if errors.Is(err, io.EOF) || err == nil && ctx.Err() != nil {
			return subdirs, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
	}
}

// Gone reports whether an error means that a path does not exist, or that a component on the way to it is not a
// directory.
func Gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// usageCounter counts each inode once.
type usageCounter struct {
	usage snapshots.Usage
	seen  map[[2]uint64]struct{} // device and inode number of inodes with several names
}

// add counts one inode, unless it was counted under another name.
func (c *usageCounter) add(dir *os.File, name string) (isDir bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, PathError("stat", name, err)
	}
	if isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR; !isDir && st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if _, counted := c.seen[key]; counted {
			return false, nil
		}
		c.seen[key] = struct{}{}
	}
	c.usage.Inodes++
	c.usage.Size += st.Blocks * blockUnit
	return isDir, nil
}
