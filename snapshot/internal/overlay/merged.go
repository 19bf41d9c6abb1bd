package overlay

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
)

// maxPath is the length in bytes of the longest path, as in the kernel (PATH_MAX without its NUL).
const maxPath = 4095

// Merged reads a stack of directories in overlay's form as one tree, the merged tree. It uses plain system calls,
// because a fix-up needs the stack of its parent where the stack is not mounted. The directories must not change
// while it is open.
//
// Merged remembers the places that it has visited, so that a lookup takes one step for each component of the path that
// was not visited before.
type Merged struct {
	elems []Element // topmost first
	top   *place    // the root
	dirs  openDirs
	cost  int // number of remembered places

	last     *place // the last result of at: plans go from a directory to its content
	lastPath string // path of last
}

// Element is one open directory of a stack.
type Element struct {
	Name string // identifies its content in the facts of a fix-up
	Root *os.File
}

// found is the inode at a path of the merged tree.
type found struct {
	elem  int // index of the element that has the inode; of a directory, the topmost one
	ino   uint64
	nlink uint64
	entry *entry.Entry
}

// OpenMerged opens a stack. dirs are its directories, topmost first.
func OpenMerged(dirs []Dir) (*Merged, error) {
	m := &Merged{}
	for _, d := range dirs {
		f, err := nodes.OpenTree(d.Path)
		if err != nil {
			m.Close()
			return nil, err
		}
		m.elems = append(m.elems, Element{d.Name, f})
	}
	m.forget()
	return m, nil
}

// Close closes the directories.
func (m *Merged) Close() {
	m.dirs.close()
	for _, e := range m.elems {
		e.Root.Close()
	}
}

// lookup returns what is at a clean relative path, nil if nothing is. It follows no symbolic links.
func (m *Merged) lookup(path string) (*found, error) {
	if len(m.elems) == 0 {
		return nil, nil
	}
	if len(path) > maxPath {
		return nil, nodes.PathError("lookup", path, unix.ENAMETOOLONG)
	}
	m.forgetTooMuch()
	p, err := m.at(path)
	if err != nil || p == nil {
		return nil, err
	}
	dir, name := m.elems[p.elem].Root, "."
	if p.parent != nil {
		name = p.name
		if dir, err = m.dirs.open(m, int(p.elem), p.parent); err != nil {
			return nil, err
		}
	}
	e, err := beneath.ReadEntry(dir, name)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", printable.Clip(path), err)
	}
	e.Path = path
	return &found{elem: int(p.elem), ino: p.ino, nlink: p.nlink, entry: e}, nil
}

// place is a path of the merged tree at which there is anything but a whiteout.
type place struct {
	name   string
	parent *place // nil for the root
	length int    // length of the path in bytes; 0 for the root
	elem   int32  // index of the topmost element that has it
	link   bool   // whether it is a symbolic link
	ino    uint64
	nlink  uint64
	// dirs has the indices of the elements whose directories merge here, topmost first. It is empty for anything but a
	// directory.
	dirs []int32
	kids map[string]*place // the entries of the directory that were visited, by name
}

// maxRemembered limits how many places a Merged remembers. A place takes about 200 bytes.
const maxRemembered = 1 << 16

// forget makes m forget all places but the root.
func (m *Merged) forget() {
	m.cost, m.last = 0, nil
	m.top = &place{dirs: make([]int32, len(m.elems))}
	for i := range m.top.dirs {
		m.top.dirs[i] = int32(i)
	}
	m.dirs.close()
}

// forgetTooMuch calls forget if m remembers too many places.
func (m *Merged) forgetTooMuch() {
	if m.cost > maxRemembered {
		m.forget()
	}
}

// at returns the place at a clean relative path, nil if nothing is there.
func (m *Merged) at(path string) (*place, error) {
	p, rest := m.top, path
	if path == "." {
		return p, nil
	}
	if n := len(m.lastPath); m.last != nil && len(path) > n && path[n] == '/' && path[:n] == m.lastPath {
		p, rest = m.last, path[n+1:]
	}
	for name, more := "", true; more && p != nil; {
		var err error
		name, rest, more = strings.Cut(rest, "/")
		if p, err = m.kid(p, name); err != nil {
			return nil, err
		}
	}
	if p != nil {
		m.last, m.lastPath = p, path
	}
	return p, nil
}

// kid returns the place of a name in a directory of the merged tree, nil if there is none.
func (m *Merged) kid(at *place, name string) (*place, error) {
	if k := at.kids[name]; k != nil {
		return k, nil
	}
	var k *place
	for _, i := range at.dirs {
		dir, err := m.dirs.open(m, int(i), at)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", printable.Clip(at.path()+"/"+name), err)
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if k == nil && !beneath.IsWhiteout(&st) {
			k = &place{
				name: name, parent: at, length: at.below(name), elem: i, ino: st.Ino, nlink: uint64(st.Nlink),
				link: st.Mode&unix.S_IFMT == unix.S_IFLNK,
			}
		}
		if !isDir {
			break
		}
		k.dirs = append(k.dirs, i)
		opaque, err := m.dirs.isOpaque(dir, int(i), k)
		if err != nil {
			return nil, err
		}
		if opaque {
			break
		}
	}
	if k == nil {
		return nil, nil
	}
	if at.kids == nil {
		at.kids = map[string]*place{}
	}
	at.kids[name] = k
	m.cost++
	return k, nil
}

// list adds to names all names in the directories that merge at a place, including those of whiteouts.
func (m *Merged) list(at *place, names map[string]struct{}) error {
	for _, i := range at.dirs {
		dir, err := m.dirs.open(m, int(i), at)
		if err != nil {
			return err
		}
		list, err := readNames(dir)
		if err != nil {
			return err
		}
		for _, name := range list {
			names[name] = struct{}{}
		}
	}
	return nil
}

// below returns the length of the path of a name in the directory.
func (p *place) below(name string) int {
	if p.parent == nil {
		return len(name)
	}
	return p.length + 1 + len(name)
}

// path returns the path of the place, "." for the root.
func (p *place) path() string {
	if p.parent == nil {
		return "."
	}
	b := make([]byte, p.length)
	for end := p.length; p.parent != nil; p = p.parent {
		end -= copy(b[end-len(p.name):end], p.name)
		if end > 0 {
			end--
			b[end] = '/'
		}
	}
	return string(b)
}

// openDirs caches the open directories that were used last: plans go from a directory to those inside it.
type openDirs struct {
	slots [16]openDirSlot
	tick  uint64 // counts uses
}

// openDirSlot is one open directory.
type openDirSlot struct {
	elem int // index of its element
	at   *place
	dir  *os.File // nil: the slot is free
	used uint64   // tick of its last use
}

// open returns the directory of one element at a place. It stays open until 16 other directories were opened.
func (d *openDirs) open(m *Merged, elem int, at *place) (*os.File, error) {
	if at.parent == nil {
		return m.elems[elem].Root, nil
	}
	d.tick++
	var above *openDirSlot
	for i := range d.slots {
		s := &d.slots[i]
		if s.dir == nil || s.elem != elem {
			continue
		}
		if s.at == at {
			s.used = d.tick
			return s.dir, nil
		}
		if s.at == at.parent {
			above = s
		}
	}
	if above != nil {
		above.used = d.tick
		return d.add(above.dir, elem, at, at.name)
	}
	return d.add(m.elems[elem].Root, elem, at, at.path())
}

// add opens the directory at the path rel below from, and closes the directory that was least recently used.
func (d *openDirs) add(from *os.File, elem int, at *place, rel string) (*os.File, error) {
	dir, err := beneath.OpenDirBelow(from, rel)
	if err != nil {
		return nil, err
	}
	oldest := &d.slots[0]
	for i := range d.slots {
		if s := &d.slots[i]; s.used < oldest.used {
			oldest = s
		}
	}
	if oldest.dir != nil {
		oldest.dir.Close()
	}
	*oldest = openDirSlot{elem, at, dir, d.tick}
	return dir, nil
}

// isOpaque reports whether the directory k of one element is opaque. dir is the open directory that contains it.
func (d *openDirs) isOpaque(dir *os.File, elem int, k *place) (bool, error) {
	d.tick++
	f, err := d.add(dir, elem, k, k.name)
	if err != nil {
		return false, err
	}
	return beneath.IsOpaque(f)
}

// close closes all directories.
func (d *openDirs) close() {
	for i := range d.slots {
		if d.slots[i].dir != nil {
			d.slots[i].dir.Close()
		}
		d.slots[i] = openDirSlot{}
	}
}

// Dir is one directory of a stack.
type Dir struct {
	Name string // identifies its content in the facts of a fix-up
	Path string
	Live bool // a container may be writing to it, although its snapshot was committed
}
