package random

import (
	"path"
	"slices"
	"strconv"
	"strings"

	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// ground is a lowest layer with something to link to: files with one name and with several, symlinks to
// directories and files.
func (m *maker) ground() []u.Item {
	dir, to := m.name(), m.name()
	items := []u.Item{
		m.dress(u.D(dir)), m.dress(u.F(dir+"/"+m.name(), "1")), m.dress(u.F(m.path(), "2")), m.dress(u.D(m.path())),
		m.dress(u.F(m.path(), "3")), m.dress(u.S(m.path(), m.symlinkTo(dir))), m.dress(u.S(to, m.symlinkTo(m.path()))),
	}
	if m.IntN(2) == 0 {
		items = append(items, m.dress(u.H(m.path(), items[1].Header.Name)))
	}
	for len(items) > 3 {
		if m.Tame {
			items = tame(items, state{})
		}
		if accepted(items) {
			break
		}
		items = slices.Delete(items, len(items)-1, len(items))
	}
	return items
}

func (m *maker) symlinkTo(p string) string {
	return []string{"/", "../", "", "../../"}[m.IntN(4)] + p
}

// linking is a layer around one or two hard links to what the layers below have, among other entries.
func (m *maker) linking() (items []u.Item) {
	for range 1 + m.IntN(2) {
		items = append(items, m.story()...)
	}
	for range m.IntN(4) {
		items = slices.Insert(items, m.IntN(len(items)+1), m.layer()[0])
	}
	return items
}

// story is a hard link and what happens to it or to its target.
func (m *maker) story() []u.Item {
	target, name := m.target(), m.path()
	dir := path.Dir(target)
	link := m.dress(u.H(name, m.behind(target)))
	switch m.IntN(12) {
	case 0: // replaced later
		return []u.Item{link, m.dress(u.F(target, "new"))}
	case 1:
		later := []u.Item{u.D(target), u.S(target, m.path()), u.H(target, m.target()), u.F(target+"/"+m.name(), "in")}
		return []u.Item{link, later[m.IntN(4)]}
	case 2: // removed later
		return []u.Item{link, m.markerOf(target)}
	case 3: // removed with a parent
		if dir == "." {
			return []u.Item{link, u.W(".wh..wh..opq")}
		}
		later := []u.Item{m.dress(u.F(dir, "new")), u.S(dir, m.path()), m.markerOf(dir), u.P(dir)}
		return []u.Item{link, later[m.IntN(4)]}
	case 4: // whiteouts and entries below
		return []u.Item{link, m.markerOf(name + "/" + m.name())}
	case 5:
		file := m.dress(u.F(name+"/"+m.name(), strconv.Itoa(m.IntN(100))))
		return []u.Item{link, file, m.markerOf(name + "/" + m.name())}
	case 6: // links of links
		return []u.Item{link, m.dress(u.H(m.path(), name)), m.dress(u.H(m.path(), m.behind(name)))}
	case 7: // the link itself goes
		return []u.Item{link, m.dress(u.H(m.path(), name)), m.dress(u.F(name, "instead"))}
	case 8: // nothing there, or no longer
		gone := u.W(path.Join(dir, ".wh."+path.Base(target)))
		if dir != "." && m.IntN(2) == 0 {
			gone = u.F(dir, "before")
		}
		return [][]u.Item{{gone, link}, {link}, {u.H(name, m.path()), u.F(name, "later")}}[m.IntN(3)]
	case 9: // a path into it, then again
		return []u.Item{link, m.dress(u.H(m.path(), name+"/"+m.name())), m.dress(u.H(name, m.target()))}
	}
	return []u.Item{link}
}

// target is a path that the layers below have: mostly a file, or a symlink.
func (m *maker) target() string {
	var list []string
	for _, p := range m.below.names {
		if k := m.below.paths[p]; k != "dir" {
			list = append(list, p)
		}
	}
	if len(list) == 0 || m.IntN(12) == 0 {
		return m.path()
	}
	return list[m.IntN(len(list))]
}

// behind is another way to a path: through a symlink of the layers below, if there is one and as chance has it.
func (m *maker) behind(p string) string {
	var list []string
	for _, s := range m.below.names {
		if m.below.paths[s] == "symlink" {
			list = append(list, s)
		}
	}
	if len(list) == 0 || m.IntN(2) == 0 {
		return p
	}
	s := list[m.IntN(len(list))]
	if m.IntN(2) == 0 {
		return path.Join(s, path.Base(p))
	}
	_, rest, ok := strings.Cut(p, "/")
	if !ok {
		rest = p
	}
	return path.Join(s, rest)
}
