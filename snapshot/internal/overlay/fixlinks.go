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

// inode identifies one inode of the parent's stack.
type inode struct {
	elem int // index of the element
	ino  uint64
}

// addXattrs adds the extended attributes of a hard link's header to those of its inode e. It removes none, because
// archivers leave attributes out of the header that the inode has already. cloned reports whether e.Xattrs is no longer
// shared; addXattrs clones the map and sets cloned when it first changes the map.
func addXattrs(e *entry.Entry, more map[string]string, cloned *bool) {
	for k, v := range more {
		if e.Type != entry.File && strings.HasPrefix(k, "user.") {
			continue // Linux has no user attributes on such inodes
		}
		if !*cloned {
			if e.Xattrs = maps.Clone(e.Xattrs); e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			*cloned = true
		}
		e.Xattrs[k] = v
	}
}

// namesOfInodes walks the tree below root and appends to names[ino] each path of an inode whose number is a key of
// names. It calls grow with the memory that each path takes.
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
