package snapshot

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// inode is one inode of the parent's stack.
type inode struct {
	elem int
	ino  uint64
}

// linkGroup is an inode of the parent to which the layer links.
type linkGroup struct {
	names   []string        // in the merged view
	from    string          // the name that the layer links to
	headers []*unpack.Entry // of the links
	node    unpack.Entry    // as the parent has it
	several bool            // the inode may have more names
}

// link notes a hard link to a path that only the parent has.
func (x *plan) link(e *unpack.Entry, own, here string) error {
	var f *found
	dir, err := x.parent.resolve(path.Dir(e.Target))
	target := path.Join(dir, path.Base(e.Target))
	if err == nil {
		f, err = x.parent.lookup(target)
	}
	if err != nil && !errdefs.IsInvalidArgument(err) { // a loop leads to no file
		return err
	}
	if f == nil && x.lenient {
		return nil
	}
	if f == nil || f.entry.Type == unpack.Dir || x.hides(target) || strings.HasPrefix(target, here+"/") {
		return fmt.Errorf("hard link %q: no file %q in the layers below: %w", own, e.Target, errdefs.ErrFailedPrecondition)
	}
	id := inode{f.elem, f.ino}
	g := x.links[id]
	if g == nil {
		g = &linkGroup{from: target, node: *f.entry, several: f.nlink > 1}
		x.links[id] = g
	}
	g.names = append(g.names, here)
	g.headers = append(g.headers, e)
	return nil
}

// hides says whether the layer itself takes away what the parent has at the path, by what it has on the way there.
func (x *plan) hides(target string) bool {
	for t, rest := x.layer, target; t != nil && rest != ""; {
		if t.entry.Opaque || t.entry.Type != unpack.Dir {
			return true
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		t = t.kids[name]
	}
	return false
}

// findNames finds the names that the linked inodes have in the parent's view and that the layer leaves alone. An
// element of which an inode has several names is read once.
func (x *plan) findNames() error {
	wanted := map[int]map[uint64][]string{}
	for id, g := range x.links {
		if !g.several {
			if err := x.addName(id, g, g.from); err != nil {
				return err
			}
			continue
		}
		if wanted[id.elem] == nil {
			wanted[id.elem] = map[uint64][]string{}
		}
		wanted[id.elem][id.ino] = nil
	}
	for elem, names := range wanted {
		if err := namesOfInodes(x.parent.elems[elem].root, names, x.interrupted); err != nil {
			return err
		}
		for ino, all := range names {
			id := inode{elem, ino}
			for _, n := range all {
				if err := x.addName(id, x.links[id], n); err != nil {
					return err
				}
			}
			delete(names, ino)
		}
	}
	return nil
}

// addName adds a name of the inode to its group if it is one in the parent's view, and the layer leaves it alone.
func (x *plan) addName(id inode, g *linkGroup, name string) error {
	if err := x.interrupted(); err != nil {
		return err
	}
	if own := x.layer.find(name); own != nil && own.entry.Type != unpack.Link || x.hides(name) {
		return nil
	}
	seen, err := x.parent.lookup(name)
	if err == nil && seen != nil && seen.elem == id.elem && seen.ino == id.ino {
		g.names = append(g.names, name)
	}
	return err
}

// emitLinks puts the groups of links into the fix-up: every name of the inode, with the attributes of the last header.
func (x *plan) emitLinks() error {
	if err := x.findNames(); err != nil {
		return err
	}
	for id, g := range x.links {
		e := g.node
		e.Xattrs = maps.Clone(e.Xattrs)
		slices.SortFunc(g.headers, func(a, b *unpack.Entry) int { return a.Seq - b.Seq })
		for _, h := range g.headers {
			e.Mode, e.UID, e.GID, e.Sec, e.Nsec = h.Mode, h.UID, h.GID, h.Sec, h.Nsec
			addXattrs(&e, h.Xattrs)
		}
		slices.Sort(g.names)
		g.names = slices.Compact(g.names)
		for _, n := range g.names {
			if err := x.interrupted(); err != nil {
				return err
			}
			x.emit(e, n)
			x.copies[n] = source{&x.parent.elems[id.elem], g.from}
			x.out.make(n).entry.Inode = g.names[0]
		}
	}
	return nil
}

// addXattrs adds what a hard link's header has; archivers leave out of it what the inode has already.
func addXattrs(e *unpack.Entry, more map[string]string) {
	for k, v := range more {
		if e.Type != unpack.File && strings.HasPrefix(k, "user.") {
			continue // Linux has none there
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[k] = v
	}
}

// keepTogether has names of an inode of the layer come along with those that a symbolic link led elsewhere.
func (x *plan) keepTogether(entries entrySource, self *element) error {
	if len(x.moved) == 0 {
		return nil
	}
	return entries(func(e *unpack.Entry) error {
		if e.Inode == "" {
			return x.interrupted()
		}
		if moved := x.moved[shortName(e.Inode)]; moved != nil && !moved[e.Path] {
			c := *e
			c.Inode = shortName(e.Inode)
			x.emitCopy(c, e.Path, source{self, e.Path})
		}
		return x.interrupted()
	})
}

// namesOfInodes walks a directory for the names of the inodes that are keys of names.
func namesOfInodes(root *os.File, names map[uint64][]string, interrupted func() error) error {
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
				sub, err := openDir(dir, n.name)
				if err != nil {
					return err
				}
				err = walk(sub, path.Join(at, n.name))
				sub.Close()
				if err != nil {
					return err
				}
			} else if found, wanted := names[st.Ino]; wanted {
				names[st.Ino] = append(found, path.Join(at, n.name))
			}
		}
		return nil
	}
	return walk(root, "")
}
