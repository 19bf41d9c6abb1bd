package snapshot

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// maxLinks is how many symbolic links a path may lead through, as in the kernel (MAXSYMLINKS).
const maxLinks = 40

// maxChain is how many symbolic links one after the other are followed before it is certain that all but the last of
// them lead through more than maxLinks. It bounds the depth of the recursion.
const maxChain = 1000

// spot is where a path leads: to a place of the view, and to names below it that the view does not have.
type spot struct {
	place   *place
	missing []string
}

func (s spot) path() string {
	if len(s.missing) == 0 {
		return s.place.path()
	}
	return path.Join(s.place.path(), strings.Join(s.missing, "/"))
}

func (s spot) length() int {
	n := s.place.length
	for _, name := range s.missing {
		n += 1 + len(name)
	}
	return n
}

// lead is where a symbolic link leads.
type lead struct {
	to    spot
	links int // that lie on the way, itself included
	err   error
}

var errTooManyLinks = fmt.Errorf("too many links: %w", errdefs.ErrInvalidArgument)

// chainError means that a chain of links was cut at this depth.
type chainError int

func (chainError) Error() string { return "too many links" }
func (chainError) Unwrap() error { return errdefs.ErrInvalidArgument }

// resolve follows symbolic links inside the view, as if it were the root of a process, and returns the path of what is
// there without any. What does not exist is taken as it stands: directories may be made there.
// errdefs.ErrInvalidArgument when there are too many links. Every link of the view is followed once.
func (m *merged) resolve(path string) (string, error) {
	m.forgetTooMuch()
	to, _, err := m.follow(spot{place: m.top}, path, 0)
	if err != nil {
		return "", fmt.Errorf("path %q: %w", clipPath(path), err)
	}
	return to.path(), nil
}

// follow goes a path from a place that is a directory, and counts the links on the way. depth is how many links led to
// this path.
func (m *merged) follow(at spot, path string, depth int) (to spot, links int, err error) {
	long := 0 // the length of what is missing
	for name, more := "", true; more; {
		name, path, more = cutPath(path)
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			if n := len(at.missing); n > 0 {
				long -= 1 + len(at.missing[n-1])
				at.missing = at.missing[:n-1]
			} else if at.place.parent != nil {
				at.place = at.place.parent
			}
			continue
		}
		var k *place
		if len(at.missing) == 0 {
			if k, err = m.kid(at.place, name); err != nil {
				return at, links, err
			}
		}
		switch {
		case k == nil:
			if len(at.missing) == 0 {
				at.missing, long = nil, 0 // not the slice that a lead remembers
			}
			at.missing, long = append(at.missing, name), long+1+len(name)
			if at.place.length+long > maxViewPath+1 {
				return at, links, unix.ENAMETOOLONG
			}
		case k.link:
			l, err := m.leadOf(k, depth)
			if err != nil {
				return at, links, err
			}
			if links += l.links; links > maxLinks {
				return at, links, errTooManyLinks
			}
			at = spot{l.to.place, append([]string(nil), l.to.missing...)}
			long = at.length() - at.place.length
		default:
			at.place = k
		}
	}
	return at, links, nil
}

// leadOf follows a symbolic link of the view, and remembers where it leads.
func (m *merged) leadOf(k *place, depth int) (*lead, error) {
	if k.lead != nil {
		return k.lead, k.lead.err
	}
	if depth == maxChain {
		return nil, chainError(depth)
	}
	dir, err := m.dirs.open(m, int(k.elem), k.parent)
	if err != nil {
		return nil, err
	}
	e, err := unpack.ReadEntry(dir, k.name)
	if err != nil {
		return nil, err
	}
	k.lead = &lead{err: errTooManyLinks} // for one that leads to itself
	l := &lead{}
	from := spot{place: k.parent}
	if strings.HasPrefix(e.Target, "/") {
		from.place = m.top
	}
	l.to, l.links, l.err = m.follow(from, e.Target, depth+1)
	if l.links++; l.err == nil && l.links > maxLinks {
		l.err = errTooManyLinks
	}
	var cut chainError
	if errors.As(l.err, &cut) && int(cut)-depth <= maxLinks {
		k.lead = nil // on another way there may be few enough links
		return nil, l.err
	}
	k.lead = l
	m.cost += 1 + len(l.to.missing)/8
	return l, l.err
}

// inside returns the path of a name in a directory, whose path is clean. path.Join would look at all of a long path.
func inside(dir, name string) string {
	if dir == "" || dir == "." {
		return name
	}
	return dir + "/" + name
}

// cutPath takes the first component off a path; more is false when that was the last one.
func cutPath(p string) (name, rest string, more bool) { return strings.Cut(p, "/") }

// clipPath keeps long paths from flooding messages.
func clipPath(p string) string {
	if len(p) > 300 {
		return p[:300] + "..."
	}
	return p
}
