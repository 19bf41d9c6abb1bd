package dirwriter

import (
	"cmp"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// dirCache keeps descriptors of the directories that were used last, because the entries of a tar come directory
// by directory.
type dirCache struct {
	open  *beneath.Opener
	spare func() error // closes other descriptors when the process has too many; nil: there are none
	slots [16]dirSlot
	limit int    // the number of slots that are used; 0: all
	tick  uint64 // counts calls of fd
	steps steps  // only used without a limit
}

// dirSlot has the descriptor of one directory.
type dirSlot struct {
	n    *tarlayer.Node // nil: the slot is free
	fd   int
	used uint64 // the tick of the last use
}

// fd returns the descriptor of a directory. It is valid until fd was called for three other directories.
func (c *dirCache) fd(n *tarlayer.Node) (int, error) {
	if n.Parent() == nil {
		return c.open.Root, nil
	}
	c.tick++
	slots := c.slots[:cmp.Or(c.limit, len(c.slots))]
	oldest := &slots[0]
	at, rel := c.open.Root, ""
	for i := range slots {
		s := &slots[i]
		if s.n == n {
			s.used = c.tick
			return s.fd, nil
		}
		if s.n != nil && s.n == n.Parent() {
			at, rel = s.fd, n.Name()
			s.used = c.tick // so that it is not closed now
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	var fd int
	var err error
	if rel == "" && c.limit == 0 {
		at, rel, err = c.steps.near(c.open, n)
	} else if rel == "" {
		rel = n.Path()
	}
	if err == nil {
		fd, err = c.open.Dir(at, rel)
	}
	if errors.Is(err, unix.EMFILE) && c.spare != nil {
		if err = c.spare(); err == nil {
			c.shrink()
			fd, err = c.open.Dir(c.open.Root, n.Path())
		}
	}
	if err != nil {
		return -1, fmt.Errorf("directory %q: %w", printable.Clip(n.Path()), err)
	}
	if oldest.n != nil {
		unix.Close(oldest.fd)
	}
	*oldest = dirSlot{n, fd, c.tick}
	return fd, nil
}

// recent is how many directories shrink leaves open: those that were used last. A caller may be using two of them.
const recent = 3

// shrink closes all directories but those used last.
func (c *dirCache) shrink() {
	c.steps.purge()
	for i := range c.slots {
		newer := 0
		for _, s := range c.slots {
			if s.used > c.slots[i].used {
				newer++
			}
		}
		if newer >= recent && c.slots[i].n != nil {
			unix.Close(c.slots[i].fd)
			c.slots[i].n = nil
		}
	}
}

// purge closes every directory, because some of them are about to be removed.
func (c *dirCache) purge() {
	c.steps.purge()
	for i := range c.slots {
		if c.slots[i].n != nil {
			unix.Close(c.slots[i].fd)
		}
		c.slots[i] = dirSlot{}
	}
}

// stride is the largest number of levels of directories that one call opens. A call for more levels would cost more
// than keeping another descriptor.
const stride = 32

// steps keeps descriptors on the way to deep directories. Without them, opening each directory of a chain by its whole
// path takes time that grows with the square of the depth.
type steps struct {
	slots [8]dirSlot
	tick  uint64
}

// near returns a descriptor of the root, or of a directory at most stride levels above n, and the path of n from
// there. The descriptor is valid until the next call.
func (s *steps) near(o *beneath.Opener, n *tarlayer.Node) (at int, rel string, err error) {
	s.tick++
	at, levels := o.Root, 0
	above := n
	for above.Parent() != nil {
		if slot := s.find(above); slot != nil && above != n {
			slot.used = s.tick
			at = slot.fd
			break
		}
		above, levels = above.Parent(), levels+1
	}
	// Keep directories at half of the path, three quarters and so on: later calls for directories higher up use them.
	for levels > stride {
		levels -= levels / 2
		next := n
		for range levels {
			next = next.Parent()
		}
		fd, err := o.Dir(at, next.PathFrom(above))
		if err != nil {
			return -1, "", err
		}
		s.keep(next, fd)
		at, above = fd, next
	}
	return at, n.PathFrom(above), nil
}

func (s *steps) find(n *tarlayer.Node) *dirSlot {
	for i := range s.slots {
		if s.slots[i].n == n {
			return &s.slots[i]
		}
	}
	return nil
}

func (s *steps) keep(n *tarlayer.Node, fd int) {
	s.tick++
	oldest := &s.slots[0]
	for i := range s.slots {
		if s.slots[i].used < oldest.used {
			oldest = &s.slots[i]
		}
	}
	if oldest.n != nil {
		unix.Close(oldest.fd)
	}
	*oldest = dirSlot{n, fd, s.tick}
}

func (s *steps) purge() {
	for i := range s.slots {
		if s.slots[i].n != nil {
			unix.Close(s.slots[i].fd)
		}
		s.slots[i] = dirSlot{}
	}
}
