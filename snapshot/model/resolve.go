package model

import "strings"

// maxLinks is how many symlinks a path may lead through.
const maxLinks = 40

// where is what a path leads to: a directory, and the components below it that are not there.
type where struct {
	dir     *name
	missing []string
	blocked *name // what is no directory in place of the first missing component
	lower   bool  // a symlink of the layers below leads there
}

// part is a component of a path.
type part struct {
	text string
	own  bool // from a symlink of this layer
	path bool // of the path itself
}

func parts(text string, own, path bool) (list []part) {
	for c := range strings.SplitSeq(text, "/") {
		if c != "" && c != "." {
			list = append(list, part{c, own, path})
		}
	}
	return list
}

// walk is a resolution on its way.
type walk struct {
	*applier
	marker bool
	todo   []part
	stack  []*name // the directories from the root to here
	where          // missing, blocked and lower so far
	links  int
	own    bool  // all symlinks so far are of this layer
	first  *name // the last symlink that is a component of the path itself
	at     where // where that is, with what the path has after it
}

// resolve follows a path of directories inside the root. Components that are not there, or are no directories, end in
// missing.
func (a *applier) resolve(dir string, marker bool) (where, error) {
	w := walk{applier: a, marker: marker, todo: parts(dir, false, true), stack: []*name{a.root}, own: true}
	for len(w.todo) > 0 {
		c := w.todo[0]
		w.todo = w.todo[1:]
		var err error
		switch {
		case c.text == "..":
			err = w.up(c)
		case strings.HasPrefix(c.text, ".wh."):
			err = invalid("a path that leads to the name of a whiteout")
		case len(w.missing) > 0:
			w.missing = append(w.missing, c.text)
		default:
			err = w.down(c)
		}
		if err != nil {
			return where{}, err
		}
		if w.links > maxLinks {
			return a.loop(w.own, w.first, w.at)
		}
	}
	w.dir = w.stack[len(w.stack)-1]
	return w.where, nil
}

func (w *walk) up(c part) error {
	switch {
	case c.own && w.lower:
		return undecided("a symlink that leaves by .. what a symlink of the layers below leads to")
	case len(w.missing) > 1:
		w.missing = w.missing[:len(w.missing)-1]
	case len(w.missing) == 1:
		w.missing, w.blocked = nil, nil
	case len(w.stack) > 1:
		w.stack = w.stack[:len(w.stack)-1]
	}
	return nil
}

func (w *walk) down(c part) error {
	here := w.stack[len(w.stack)-1]
	next := here.kids[c.text]
	if w.lower {
		if w.gone[spot{here, c.text}] {
			return undecided("a symlink of the layers below that leads to what this one removes")
		}
		if next != nil && next.layer == w.layer && !next.isDir() {
			return undecided("a symlink of the layers below that leads to no directory of this one")
		}
		w.reached[next] = true
	}
	if next != nil && !next.isDir() && w.aliased[next] {
		return undecided("a path to what was made behind a symlink of the layers below")
	}
	switch {
	case next == nil:
		w.missing = append(w.missing, c.text)
	case next.lower && next.layer == w.layer:
		return invalid("below a hard link to the layers below")
	case next.kind == "symlink":
		return w.follow(here, next, c)
	case next.isDir():
		w.stack = append(w.stack, next)
	default:
		w.missing, w.blocked = append(w.missing, c.text), next
		if w.marker && next.layer != w.layer {
			w.entered[next] = true
			if w.names(next.node) > 1 {
				return undecided("a marker below a file with several names")
			}
		}
	}
	return nil
}

func (w *walk) follow(here, link *name, c part) error {
	if c.path {
		w.first, w.at = link, where{dir: here, missing: []string{c.text}, blocked: link}
		for _, rest := range w.todo {
			w.at.missing = append(w.at.missing, rest.text)
		}
	}
	if link.layer != w.layer {
		w.followed[link], w.lower, w.own = true, true, false
		if w.targets[link] {
			return undecided("a hard link to a symlink that is followed too")
		}
		if w.names(link.node) > 1 {
			return undecided("a symlink with several names that is followed")
		}
	}
	w.links++
	if strings.HasPrefix(link.target, "/") {
		w.stack = w.stack[:1]
	}
	w.todo = append(parts(link.target, link.layer == w.layer, false), w.todo...)
	return nil
}

// loop is a path with too many symlinks: of this layer it is refused, of the layers below the symlink that begins it
// is taken for a file.
func (a *applier) loop(own bool, first *name, at where) (where, error) {
	if own {
		return where{}, invalid("a loop of symlinks")
	}
	if first.layer == a.layer {
		return where{}, undecided("a loop of symlinks of several layers")
	}
	delete(a.followed, first)
	a.entered[first] = true
	return at, nil
}

// makeParent resolves a path and makes the directories that are missing, in place of whatever else is there.
func (a *applier) makeParent(dir string) (*name, error) {
	w, err := a.resolve(dir, false)
	if err != nil {
		return nil, err
	}
	if w.blocked != nil {
		delete(a.reached, w.blocked)
		if err := a.remove(w.dir, w.missing[0]); err != nil {
			return nil, err
		}
	}
	a.lastLower = w.lower
	at := w.dir
	for _, c := range w.missing {
		made := newDir(a.layer)
		a.reached[made] = w.lower
		at.kids[c] = made
		at = made
	}
	return at, nil
}

// names counts the names of an inode. Only for what has several does ADR 0003 let identity across layers be undecided.
func (a *applier) names(of *node) (count int) {
	all := map[string]*name{}
	a.root.gather("", all)
	for _, n := range all {
		if n.node == of {
			count++
		}
	}
	return count
}
