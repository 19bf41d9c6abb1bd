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
	names   []string       // in the merged view
	from    string         // the name that the layer links to
	headers []unpack.Entry // of the links
	node    unpack.Entry   // as the parent has it
}

// link notes a hard link to a path that only the parent has.
func (x *plan) link(e unpack.Entry, here string) error {
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
		return fmt.Errorf("hard link %q: no file %q in the layers below: %w", e.Path, e.Target, errdefs.ErrFailedPrecondition)
	}
	id := inode{f.elem, f.stat.Ino}
	g := x.links[id]
	if g == nil {
		g = &linkGroup{from: target, node: *f.entry}
		if g.names, err = x.namesOf(f, target); err != nil {
			return err
		}
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

// namesOf lists the names that the inode of f has in the parent's view and that the layer leaves alone.
func (x *plan) namesOf(f *found, target string) ([]string, error) {
	all := []string{target}
	if f.stat.Nlink > 1 {
		if x.names[f.elem] == nil {
			var err error
			if x.names[f.elem], err = namesOfInodes(x.parent.elems[f.elem].root); err != nil {
				return nil, err
			}
		}
		all = x.names[f.elem][f.stat.Ino]
	}
	var names []string
	for _, n := range all {
		if own := x.layer.find(n); own != nil && own.entry.Type != unpack.Link || x.hides(n) {
			continue
		}
		seen, err := x.parent.lookup(n)
		if err != nil {
			return nil, err
		}
		if seen != nil && seen.elem == f.elem && seen.stat.Ino == f.stat.Ino {
			names = append(names, n)
		}
	}
	return names, nil
}

// emitLinks puts the groups of links into the fix-up: every name of the inode, with the attributes of the last header.
func (x *plan) emitLinks() error {
	for id, g := range x.links {
		e := g.node
		slices.SortFunc(g.headers, func(a, b unpack.Entry) int { return a.Seq - b.Seq })
		for _, h := range g.headers {
			e.Mode, e.UID, e.GID, e.Sec, e.Nsec = h.Mode, h.UID, h.GID, h.Sec, h.Nsec
			e.Xattrs = withXattrs(&e, h.Xattrs)
		}
		slices.Sort(g.names)
		g.names = slices.Compact(g.names)
		for _, n := range g.names {
			x.emit(e, n)
			x.copies[n] = source{&x.parent.elems[id.elem], g.from}
			x.out.make(n).entry.Inode = g.names[0]
		}
	}
	return nil
}

// withXattrs adds what a hard link's header has; archivers leave out of it what the inode has already.
func withXattrs(e *unpack.Entry, more map[string]string) map[string]string {
	all := maps.Clone(e.Xattrs)
	for k, v := range more {
		if e.Type != unpack.File && strings.HasPrefix(k, "user.") {
			continue // Linux has none there
		}
		if all == nil {
			all = map[string]string{}
		}
		all[k] = v
	}
	return all
}

// keepTogether has names of an inode of the layer come along with those that a symbolic link led elsewhere.
func (x *plan) keepTogether(entries []unpack.Entry, self *element) {
	for _, e := range entries {
		if moved := x.moved[e.Inode]; moved != nil && !moved[e.Path] {
			x.emitCopy(e, e.Path, source{self, e.Path})
		}
	}
}

// namesOfInodes walks a directory for the names of the inodes that have several.
func namesOfInodes(root *os.File) (map[uint64][]string, error) {
	names := map[uint64][]string{}
	var walk func(dir *os.File, at string) error
	walk = func(dir *os.File, at string) error {
		list, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		slices.SortFunc(list, cmp.Compare)
		for _, n := range list {
			var st unix.Stat_t
			if err := unix.Fstatat(int(dir.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			switch {
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				sub, err := openDir(dir, n)
				if err != nil {
					return err
				}
				err = walk(sub, path.Join(at, n))
				sub.Close()
				if err != nil {
					return err
				}
			case st.Nlink > 1:
				names[st.Ino] = append(names[st.Ino], path.Join(at, n))
			}
		}
		return nil
	}
	top, err := openDir(root, ".")
	if err != nil {
		return nil, err
	}
	defer top.Close()
	return names, walk(top, "")
}
