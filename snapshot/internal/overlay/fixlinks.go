package overlay

import (
	"cmp"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
)

// inode is one inode of the parent's stack.
type inode struct {
	elem int
	ino  uint64
}

// addXattrs adds what a hard link's header has; archivers leave out of it what the inode has already. own is true once
// the map is the inode's alone.
func addXattrs(e *entry.Entry, more map[string]string, own *bool) {
	for k, v := range more {
		if e.Type != entry.File && strings.HasPrefix(k, "user.") {
			continue // Linux has none there
		}
		if !*own {
			if e.Xattrs = maps.Clone(e.Xattrs); e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			*own = true
		}
		e.Xattrs[k] = v
	}
}

// namesOfInodes walks a directory for the names of the inodes that are keys of names. grow is asked for the memory that
// a name takes.
func namesOfInodes(root *os.File, names map[uint64][]string, interrupted func() error,
	grow func(bytes int64) error,
) error {
	var walk func(dir *os.File, at string) error
	walk = func(dir *os.File, at string) error {
		list, err := readDir(dir)
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b dirent) int { return cmp.Compare(a.name, b.name) })
		for _, n := range list {
			if err := interrupted(); err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Fstatat(int(dir.Fd()), n.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				sub, err := nodes.OpenDir(dir, n.name)
				if err != nil {
					return err
				}
				err = walk(sub, path.Join(at, n.name))
				sub.Close()
				if err != nil {
					return err
				}
			} else if found, wanted := names[st.Ino]; wanted {
				name := path.Join(at, n.name)
				names[st.Ino] = append(found, name)
				if err := grow(listedMemory + int64(len(name))); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk(root, "")
}
