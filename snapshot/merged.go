package snapshot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// maxLinks is how many symbolic links a path may lead through, as in the kernel (MAXSYMLINKS).
const maxLinks = 40

// merged is what a stack of directories in overlay's form looks like, topmost first: read with plain system calls,
// because the stack of a parent is needed where nothing is mounted. The directories do not change while it is open.
type merged struct {
	elems []element
}

// element is one directory of a stack.
type element struct {
	name string // what stands for its content in the facts of a fix-up
	root *os.File
}

// found is what lies at a path of a merged view, or that nothing does.
type found struct {
	elem  int // whose entry it is: the topmost of a directory's
	entry *unpack.Entry
	stat  unix.Stat_t
}

// openMerged opens a stack; dirs are the directories, topmost first, by the names that stand for their content.
func openMerged(dirs []stackDir) (*merged, error) {
	m := &merged{}
	for _, d := range dirs {
		f, err := openTree(d.path)
		if err != nil {
			m.close()
			return nil, err
		}
		m.elems = append(m.elems, element{d.name, f})
	}
	return m, nil
}

func (m *merged) close() {
	for _, e := range m.elems {
		e.root.Close()
	}
}

// lookup finds a clean relative path without following symbolic links in any component; nil when nothing is there.
func (m *merged) lookup(path string) (*found, error) {
	active := make([]int, len(m.elems))
	for i := range active {
		active[i] = i
	}
	var top *found
	for end := range len(path) + 1 {
		if end < len(path) && path[end] != '/' {
			continue
		}
		var err error
		if top, active, err = m.step(active, path[:end]); err != nil || top == nil {
			return nil, err
		}
		if len(active) == 0 && end < len(path) {
			return nil, nil // a component that is no directory
		}
	}
	e, err := unpack.ReadEntry(m.elems[top.elem].root, path)
	if err != nil {
		return nil, err
	}
	top.entry = e
	return top, nil
}

// step goes one component down: prefix is the path so far, active are the elements whose directories merge there. It
// returns what is at prefix, nil when nothing, and the elements that merge in it, none when it is no directory.
func (m *merged) step(active []int, prefix string) (top *found, next []int, err error) {
	for _, i := range active {
		var st unix.Stat_t
		err := unix.Fstatat(int(m.elems[i].root.Fd()), prefix, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", prefix, err)
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if !isDir {
			if top == nil && !unpack.IsWhiteout(&st) {
				top = &found{elem: i, stat: st}
			}
			break
		}
		if top == nil {
			top = &found{elem: i, stat: st}
		}
		next = append(next, i)
		opaque, err := isOpaque(m.elems[i].root, prefix)
		if err != nil {
			return nil, nil, err
		}
		if opaque {
			break
		}
	}
	return top, next, nil
}

func isOpaque(root *os.File, path string) (bool, error) {
	d, err := openDir(root, path)
	if err != nil {
		return false, err
	}
	defer d.Close()
	return unpack.IsOpaque(d)
}

// resolve follows symbolic links inside the view, as if it were the root of a process, and returns the path of what is
// there without any. What does not exist is taken as it stands: directories may be made there. errdefs.ErrInvalidArgument
// when there are too many links.
func (m *merged) resolve(path string) (string, error) {
	rest := strings.Split(path, "/")
	var done []string
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = done[:max(0, len(done)-1)]
			continue
		}
		here := strings.Join(append(slices.Clone(done), name), "/")
		f, err := m.lookup(here)
		if err != nil {
			return "", err
		}
		if f == nil || f.entry.Type != unpack.Symlink {
			done = append(done, name)
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("path %q: too many links: %w", path, errdefs.ErrInvalidArgument)
		}
		if strings.HasPrefix(f.entry.Target, "/") {
			done = nil
		}
		rest = append(strings.Split(f.entry.Target, "/"), rest...)
	}
	if len(done) == 0 {
		return ".", nil
	}
	return strings.Join(done, "/"), nil
}
