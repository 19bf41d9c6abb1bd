package nodes

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

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
	if err := c.add(root, "."); err != nil {
		return u, err
	}
	for todo := []string{"."}; len(todo) > 0; {
		if ctx.Err() != nil {
			return u, ctx.Err()
		}
		rel := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d, err := beneath.OpenDirBelow(root, rel)
		if Gone(err) {
			continue
		}
		if err != nil {
			return u, err
		}
		subdirs, err := c.dir(ctx, d)
		d.Close()
		if err != nil {
			return u, err
		}
		for _, name := range subdirs {
			todo = append(todo, path.Join(rel, name))
		}
	}
	return c.usage, nil
}

// Gone reports whether an error means that a path does not exist, or that a component on the way to it is not a
// directory.
func Gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// usageCounter counts each inode once.
type usageCounter struct {
	usage   snapshots.Usage
	seen    map[[2]uint64]struct{} // device and inode number of inodes with several names
	subdirs []string               // subdirectories of the directory that is being counted
}

// dir counts the entries of a directory and returns the names of its subdirectories.
func (c *usageCounter) dir(ctx context.Context, d *os.File) ([]string, error) {
	c.subdirs = nil
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := c.add(d, name); err != nil && !Gone(err) {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) || err == nil && ctx.Err() != nil {
			return c.subdirs, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
	}
}

// add counts one inode, unless it was counted under another name.
func (c *usageCounter) add(dir *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return PathError("stat", name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		c.subdirs = append(c.subdirs, name)
	case st.Nlink > 1:
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if _, counted := c.seen[key]; counted {
			return nil
		}
		c.seen[key] = struct{}{}
	}
	c.usage.Inodes++
	c.usage.Size += st.Blocks * blockUnit
	return nil
}
