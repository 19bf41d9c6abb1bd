package crashstate

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// inode is a file, directory, symbolic link or device of the recorded root, as it is in memory.
type inode struct {
	kind   uint32 // S_IFDIR and so on
	rdev   uint64
	target string // of a symbolic link
	attrs  *attrs
	first  *attrs // with which it was made
	moves  int    // the last effect that gave the inode a name or took one away; -1: none

	names   map[string]*inode // of a directory
	renames map[string]*int   // the last effect that changed each name

	data     []byte    // of a file, as it is in memory
	versions []version // of a database
}

// version is the content of a database after a commit.
type version struct {
	step int
	data []byte
}

func newInode(kind uint32, a *attrs) *inode { return &inode{kind: kind, attrs: a, first: a, moves: -1} }

func newDir() *inode {
	d := newInode(unix.S_IFDIR, &attrs{mode: 0o700})
	d.names, d.renames = map[string]*inode{}, map[string]*int{}
	return d
}

// moved returns the number of the last effect that changed a name of the inode.
func (n *inode) moved() *int {
	if n == nil {
		return nil
	}
	return &n.moves
}

// last returns the number of the last effect that changed a name in the directory.
func (n *inode) last(name string) *int {
	if n.renames[name] == nil {
		none := -1
		n.renames[name] = &none
	}
	return n.renames[name]
}

// each calls fn for each name below a directory, after those below that name.
func (n *inode) each(fn func(dir *inode, name string)) {
	for _, name := range n.sorted() {
		n.names[name].each(fn)
		fn(n, name)
	}
}

// sorted returns the names in a directory, in an order that is always the same.
func (n *inode) sorted() []string { return slices.Sorted(maps.Keys(n.names)) }

// below returns the inode and everything below it.
func (n *inode) below() map[*inode]bool {
	all := map[*inode]bool{n: true}
	n.each(func(dir *inode, name string) { all[dir.names[name]] = true })
	return all
}

// parent returns the directory of path, and its last element.
func (r *Recorder) parent(path string) (dir *inode, base string) {
	return r.find(filepath.Dir(path)), filepath.Base(path)
}

// find returns the inode at path, or nil. What was made without the Recorder's knowledge is added to
// the history: by the Build that runs, or without a sync. The caller holds mu.
func (r *Recorder) find(path string) *inode {
	rel := r.rel(path)
	node, at := r.root, r.path
	switch {
	case rel == ".":
		return node
	case !filepath.IsLocal(rel): // the directory above the root
		return nil
	}
	for _, base := range strings.Split(rel, "/") {
		at = filepath.Join(at, base)
		if node.names == nil {
			return nil
		}
		next := node.names[base]
		if next == nil {
			if next = newNode(at); next == nil {
				return nil
			}
			from := min(r.filling, len(r.steps))
			r.add(&effect{from: from, to: len(r.steps), names: []name{{node, base, next}}})
			r.attributes(next, at, from)
			r.content(next, at, from)
		}
		node = next
	}
	return node
}

// newNode returns an inode like the one at path, without content; nil if there is none.
func newNode(path string) *inode {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil
	}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFDIR:
		return newDir()
	case unix.S_IFLNK:
		n := newInode(kind, &attrs{mode: 0o777})
		n.target, _ = os.Readlink(path)
		return n
	}
	n := newInode(kind, &attrs{mode: 0o600})
	n.rdev = st.Rdev
	return n
}

// capture compares what is recorded at path and below it with the disk, and records the difference as
// made between the step from and the last one. The caller holds mu.
func (r *Recorder) capture(path string, from int) error {
	dir, base := r.parent(path)
	return r.captureName(dir, base, path, from, map[uint64]*inode{})
}

func (r *Recorder) captureName(dir *inode, base, path string, from int, links map[uint64]*inode) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if dir.names[base] != nil {
			r.add(&effect{from: from, to: len(r.steps) - 1, names: []name{{dir, base, nil}}})
		}
		return nil
	}
	node := dir.names[base]
	linked := links[st.Ino]
	if node == nil || node.kind != st.Mode&unix.S_IFMT || linked != nil && linked != node {
		if node = linked; node == nil {
			node = newNode(path)
		}
		r.add(&effect{from: from, to: len(r.steps) - 1, names: []name{{dir, base, node}}})
	}
	if linked != nil {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		links[st.Ino] = node
	}
	r.content(node, path, from)
	if node.names != nil {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, e := range entries {
			have[e.Name()] = true
			if err := r.captureName(node, e.Name(), filepath.Join(path, e.Name()), from, links); err != nil {
				return err
			}
		}
		for _, gone := range node.sorted() {
			if !have[gone] {
				r.add(&effect{from: from, to: len(r.steps) - 1, names: []name{{node, gone, nil}}})
			}
		}
	}
	r.attributes(node, path, from)
	return nil
}

// content records the bytes of a file if they differ from those that are recorded.
func (r *Recorder) content(node *inode, path string, from int) {
	if node.kind != unix.S_IFREG {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil || bytes.Equal(data, node.data) {
		return
	}
	if len(node.data) > 0 {
		r.add(&effect{from: from, to: len(r.steps) - 1, inode: node, size: 0})
	}
	r.add(&effect{from: from, to: len(r.steps) - 1, inode: node, data: data, size: -1})
	node.data = data
}

// attributes records the attributes of an inode if they differ from those that are recorded.
func (r *Recorder) attributes(node *inode, path string, from int) {
	a := attrsOf(path)
	if a == nil || a.equal(node.attrs) {
		return
	}
	node.attrs = a
	r.add(&effect{from: from, to: len(r.steps) - 1, inode: node, attrs: a})
}

// attrs are the attributes of an inode.
type attrs struct {
	mode     uint32 // without the type
	uid, gid uint32
	mtime    *unix.Timespec // nil: any time
	xattrs   map[string]string
}

func (a *attrs) equal(b *attrs) bool {
	return a.mode == b.mode && a.uid == b.uid && a.gid == b.gid && sameTime(a.mtime, b.mtime) &&
		maps.Equal(a.xattrs, b.xattrs)
}

func sameTime(a, b *unix.Timespec) bool { return a == b || a != nil && b != nil && *a == *b }

// attrsOf returns the attributes of the inode at path; nil if there is none.
func attrsOf(path string) *attrs {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil
	}
	a := &attrs{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, mtime: &st.Mtim}
	buf := make([]byte, 1<<12)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return a
	}
	a.xattrs = map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 1<<12)
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			a.xattrs[name] = string(value[:n])
		}
	}
	return a
}
