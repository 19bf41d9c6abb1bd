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

// maxViewPath is the length in bytes of the longest path of a view, as in the kernel (PATH_MAX without its NUL).
const maxViewPath = 4095

// Merged is a read-only view of a stack of directories in overlay's form, topmost first. It uses plain system calls,
// because a fix-up needs the stack of its parent where nothing is mounted. The directories do not change while it is
// open.
//
// A view remembers where it was, so that a path costs one step for each component that was not looked at before,
// however deep it lies.
type Merged struct {
	elems []Element
	top   *place
	dirs  openDirs
	cost  int // of the remembered places

	last     *place // that at returned last: plans go from a directory to what is in it
	lastPath string
}

// Element is one open directory of a stack.
type Element struct {
	Name string // identifies its content in the facts of a fix-up
	Root *os.File
}

// found is what lies at a path of a merged view.
type found struct {
	elem  int // the element that the entry is of: the topmost one for a directory
	ino   uint64
	nlink uint64
	entry *entry.Entry
}

// OpenMerged opens a stack; dirs are the directories, topmost first, by the names that stand for their content.
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

// lookup finds a clean relative path without following symbolic links in any component; nil when nothing is there.
func (m *Merged) lookup(path string) (*found, error) {
	if len(m.elems) == 0 {
		return nil, nil
	}
	if len(path) > maxViewPath {
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
	length int    // of the path
	elem   int32  // the topmost element that has it
	link   bool   // it is a symbolic link
	ino    uint64
	nlink  uint64
	// dirs are the elements whose directories merge here, topmost first; none when it is no directory.
	dirs []int32
	kids map[string]*place // those that were looked at
}

// maxRemembered limits how many places a Merged remembers. A place takes about 200 bytes.
const maxRemembered = 1 << 16

// forget makes the view remember nothing but its root.
func (m *Merged) forget() {
	m.cost, m.last = 0, nil
	m.top = &place{dirs: make([]int32, len(m.elems))}
	for i := range m.top.dirs {
		m.top.dirs[i] = int32(i)
	}
	m.dirs.close()
}

func (m *Merged) forgetTooMuch() {
	if m.cost > maxRemembered {
		m.forget()
	}
}

// at returns the place of a clean relative path, nil when nothing is there.
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

// kid returns what has a name in a directory of the view, nil when nothing does.
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

// list adds the names in a directory of the view, those that it hides among them.
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

// below is the length of the path of a name in the directory.
func (p *place) below(name string) int {
	if p.parent == nil {
		return len(name)
	}
	return p.length + 1 + len(name)
}

// path of the place, "." for the root.
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

// openDirs are the directories of a view that were used last: plans go from a directory to those inside it.
type openDirs struct {
	slots [16]openDirSlot
	tick  uint64
}

type openDirSlot struct {
	elem int
	at   *place
	dir  *os.File
	used uint64
}

// open returns a directory of one element. It is open until fifteen others were asked for.
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

// add opens a directory, whose path relative to another one is rel, in the place of the one that was used first.
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

// isOpaque opens a directory inside another one, which was opened last.
func (d *openDirs) isOpaque(dir *os.File, elem int, k *place) (bool, error) {
	d.tick++
	f, err := d.add(dir, elem, k, k.name)
	if err != nil {
		return false, err
	}
	return beneath.IsOpaque(f)
}

func (d *openDirs) close() {
	for i := range d.slots {
		if d.slots[i].dir != nil {
			d.slots[i].dir.Close()
		}
		d.slots[i] = openDirSlot{}
	}
}

// Dir is one directory of a stack, with a name that identifies its content.
type Dir struct {
	Name string
	Path string
	Live bool // a container may be writing to it, although its snapshot was committed
}
