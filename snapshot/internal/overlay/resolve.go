package overlay

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// The limits of the resolution of a path are those of package unpack: the number of symbolic links on the path, as in
// the kernel (MAXSYMLINKS), and the number of components, because the targets of links may be long.
const (
	maxLinks      = 40
	maxComponents = 8192
)

// simSpot is where a path leads in a replay: to a directory, and to missing names below it. Only the first of these
// names may exist, and then it is not a directory.
type simSpot struct {
	dir     *simNode
	missing []string
}

// walker resolves one path.
type walker struct {
	*replay
	at    simSpot
	rest  string // the components to follow: those of symbolic links' targets, then those of the path itself
	tail  int    // how many bytes at the end of rest belong to the path itself
	links int    // symbolic links that were followed
	steps int    // components that were resolved
	// The last symbolic link that is a component of the path itself, its directory, its name, and the path after it.
	link     *simName
	linkAt   *simNode
	linkName string
	after    string
	// passed is true if a component was missing, even if a later ".." removed it again.
	passed bool
}

// resolve resolves the path of a directory inside the root. It follows the symbolic links that exist at this step.
// ".." of the root is the root, and ".." after a missing name removes that name.
func (r *replay) resolve(p string, s *tarlayer.Step) (simSpot, error) {
	if p == "." {
		p = ""
	}
	for i := range r.recent {
		if c := &r.recent[i]; c.dir != nil && c.path == p && c.removals == r.removals {
			return simSpot{dir: c.dir}, nil
		}
	}
	w := walker{replay: r, at: simSpot{dir: r.root}, rest: p, tail: len(p)}
	for w.rest != "" {
		if err := w.next(); err != nil {
			return w.at, err
		}
		if w.links > maxLinks || w.steps > maxComponents {
			return w.loop(s)
		}
	}
	for _, c := range w.at.missing {
		if entry.Reserved(c) {
			return w.at, stepError(s, "its path leads to %q, a name of whiteouts", printable.Clip(c))
		}
	}
	if !w.passed {
		r.recent[0], r.recent[1] = resolved{p, w.at.dir, r.removals}, r.recent[0]
	}
	return w.at, nil
}

// next follows one component.
func (w *walker) next() error {
	ofPath := len(w.rest) <= w.tail
	var c string
	c, w.rest, _ = strings.Cut(w.rest, "/")
	w.tail = min(w.tail, len(w.rest))
	w.steps++
	switch {
	case c == "" || c == ".":
		return nil
	case c == "..":
		if n := len(w.at.missing); n > 0 {
			w.at.missing = w.at.missing[:n-1]
		} else if w.at.dir.up != nil {
			w.at.dir = w.at.dir.up
		}
		return nil
	case len(w.at.missing) > 0:
		w.at.missing = append(w.at.missing, c)
		return nil
	}
	k, err := w.kid(w.at.dir, c)
	switch {
	case err != nil:
		return err
	case k != nil && k.isDir():
		w.at.dir = k.simNode
		return nil
	case k == nil || k.entry.Type != entry.Symlink:
		w.at.missing, w.passed = append(w.at.missing, c), true
		return nil
	}
	if err := w.readAttrs(k.simNode); err != nil {
		return err
	}
	if ofPath {
		w.link, w.linkAt, w.linkName, w.after = k, w.at.dir, c, w.rest
	}
	w.links++
	if strings.HasPrefix(k.entry.Target, "/") {
		w.at.dir = w.root
	}
	w.rest = k.entry.Target + "/" + w.rest
	return nil
}

// loop returns the result for a path with too many links. If the last link of the path is of the layer itself, this
// is an error; a link of the parent counts as a file.
func (w *walker) loop(s *tarlayer.Step) (simSpot, error) {
	if w.link.explicit {
		return w.at, stepError(s, "too many levels of symlinks")
	}
	at := simSpot{dir: w.linkAt, missing: []string{w.linkName}}
	for c := range strings.SplitSeq(w.after, "/") {
		if c != "" {
			at.missing = append(at.missing, c)
		}
	}
	return at, nil
}

// maxName is the length in bytes of the longest name, as in the kernel (NAME_MAX).
const maxName = 255

// inside returns the path of a name in a directory, whose path must be clean. path.Join would clean the whole path
// again.
func inside(dir, name string) string {
	if dir == "" || dir == "." {
		return name
	}
	return dir + "/" + name
}

// stepError returns an error about one entry of the tar. It wraps stream.ErrInvalidLayer.
func stepError(s *tarlayer.Step, format string, args ...any) error {
	what := "tar entry " + strconv.Quote(printable.Clip(s.Path))
	return fmt.Errorf("%s: %s: %w", what, fmt.Sprintf(format, args...), stream.ErrInvalidLayer)
}
