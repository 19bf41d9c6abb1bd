package model

import (
	"path"
	"strings"
)

// maxLinks is how many symlinks a path may lead through.
const maxLinks = 40

// where is what a path leads to: a directory, and the components below it that are missing there.
type where struct {
	dir     *name
	missing []string
	blocked *name // what has the name of the first missing component, but is no directory
	lower   bool  // a symlink of the layers below was on the way
	link    bool  // a hard link of this layer to the layers below was on the way
}

// walk is a resolution on its way.
type walk struct {
	*applier
	todo  []string
	mine  int     // how many of todo, the last ones, are of the path itself
	stack []*name // the directories from the root to here
	at    where   // missing, blocked and lower so far
	links int
	first *name // the last symlink that is a component of the path itself
	start where // where that is, with what the path has after it
}

// split returns the components of a path.
func split(p string) (list []string) {
	for c := range strings.SplitSeq(p, "/") {
		if c != "" && c != "." {
			list = append(list, c)
		}
	}
	return list
}

// resolve follows a path of directories inside the root. A loop of symlinks ends at the component of the path
// that leads into it: if that is a symlink of this layer, the layer is refused; if not, it counts as a file.
func (a *applier) resolve(dir string) (where, error) {
	w := walk{applier: a, todo: split(dir), stack: []*name{a.root}}
	w.mine = len(w.todo)
	for len(w.todo) > 0 {
		c, mine := w.todo[0], len(w.todo) <= w.mine
		w.todo = w.todo[1:]
		w.mine = min(w.mine, len(w.todo))
		switch {
		case len(c) > maxLen:
			return where{}, invalid("a component of %d bytes", len(c))
		case c == "..":
			w.up()
		case len(w.at.missing) > 0:
			w.at.missing = append(w.at.missing, c)
		default:
			w.down(c, mine)
		}
		if w.links > maxLinks {
			a.seen[Loop]++
			if w.first.layer == a.layer {
				return where{}, invalid("a loop of symlinks")
			}
			return w.start, nil
		}
	}
	for _, c := range w.at.missing {
		if strings.HasPrefix(c, meta) {
			return where{}, invalid("a path to a name that begins with %s", meta)
		}
	}
	w.at.dir = w.stack[len(w.stack)-1]
	return w.at, nil
}

func (w *walk) up() {
	switch n := len(w.at.missing); {
	case n > 0:
		w.at.missing = w.at.missing[:n-1]
		if n == 1 {
			w.at.blocked = nil
		}
	case len(w.stack) > 1:
		w.stack = w.stack[:len(w.stack)-1]
	}
}

func (w *walk) down(c string, mine bool) {
	here := w.stack[len(w.stack)-1]
	next := here.kids[c]
	if next != nil && next.below && next.layer == w.layer {
		w.at.link = true
	}
	switch {
	case next == nil:
		w.at.missing = append(w.at.missing, c)
	case next.isDir():
		w.stack = append(w.stack, next)
	case next.kind == "symlink":
		w.follow(here, next, c, mine)
	default:
		w.at.missing, w.at.blocked = append(w.at.missing, c), next
	}
}

func (w *walk) follow(here, link *name, c string, mine bool) {
	if mine {
		w.first = link
		w.start = where{dir: here, missing: append([]string{c}, w.todo...), blocked: link, lower: w.at.lower}
	}
	if link.layer != w.layer || link.below {
		w.seen[LowerSymlink]++
		w.at.lower = true
	}
	w.links++
	if path.IsAbs(link.target) {
		w.stack = w.stack[:1]
	}
	w.todo = append(split(link.target), w.todo...)
}

// makeParent resolves a path and makes the directories that are missing, in place of whatever else is there.
func (a *applier) makeParent(dir string) (*name, error) {
	w, err := a.resolve(dir)
	if err != nil {
		return nil, err
	}
	if w.link {
		a.seen[BelowLink]++
	}
	if w.blocked != nil {
		a.seen[BlockedDir]++
		a.remove(w.dir, w.missing[0])
	}
	at := w.dir
	for _, c := range w.missing {
		a.seen[ImpliedDir]++
		made := a.newDir(at, c)
		at.kids[c] = made
		at = made
	}
	return at, nil
}
