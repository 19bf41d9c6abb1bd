package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// plan says what a fix-up holds: what a layer, unpacked without knowledge of its parent, has to show differently above
// this parent so that the stack is what applying the tars one after the other gives (docs/adr/0003-layer-application.md).
type plan struct {
	layer   *tree
	parent  *merged
	out     *tree             // nodes that are still implied are directories on the way to the others
	drops   []dropped         // directories of the layer that are not to be seen
	copies  map[string]source // by path in out: where a file's content comes from
	lenient bool              // see replay

	outBytes int64                   // what out takes
	grow     func(bytes int64) error // asks for memory
	// interrupted returns why planning has to end, if it has to. It is called for every node that is looked at.
	interrupted func() error
}

// dropped is a directory of the layer, and what the parent, where there is something, has in its place.
type dropped struct {
	dir   *tree
	at    string // the node's path
	below *found
}

// source is a node to copy.
type source struct {
	elem *element
	path string
}

// planned is a layer for which a fix-up is planned.
type planned struct {
	entries entrySource
	steps   stepSource   // of an ordered layer, otherwise nil
	self    *element     // the layer's own directory
	aside   *element     // nil if nothing was set aside
	newDir  unpack.Entry // the attributes of a directory without an entry
}

// planFixup finds out what a layer needs above the parent. The plan is empty when it needs nothing.
//
// The time is proportional to the entries of the layer and of the parent, and to the length of their paths.
func planFixup(ctx context.Context, l planned, parent *merged, lenient bool, grow func(bytes int64) error) (
	*plan, error,
) {
	grow = inSteps(grow)
	layer, err := newLayerTree(l.entries, grow)
	if err != nil {
		return nil, err
	}
	x := &plan{layer: layer, parent: parent, lenient: lenient, grow: grow, interrupted: everyFew(ctx)}
	if l.steps == nil {
		x.reset()
		if err := x.simple(); !errors.Is(err, errOrderMatters) {
			return x, err
		}
		l.steps = sealSteps(l.entries, grow)
	}
	x.reset()
	return x, x.replayed(l)
}

func (x *plan) reset() {
	x.out, x.copies, x.drops = newRoot(defaultDir(".")), map[string]source{}, nil
}

// errOrderMatters means that the final tree of the layer does not determine the result above this parent.
var errOrderMatters = errors.New("the order of the entries matters")

// simple plans for a layer of which only the attributes of directories depend on the parent, and fails with
// errOrderMatters for any other.
func (x *plan) simple() error {
	if err := x.walk(x.layer, ".", x.layer.entry.Opaque); err != nil {
		return err
	}
	if err := x.drop(x.drops); err != nil {
		return err
	}
	return x.carry(x.out)
}

// maxOut bounds the memory of what a fix-up holds. The paths in it may be longer than those of the layer.
const maxOut = 192 << 20

// inSteps has grow asked for 256 KiB at once.
func inSteps(grow func(bytes int64) error) func(bytes int64) error {
	const step = 256 << 10
	var taken, asked int64
	return func(bytes int64) error {
		if taken += bytes; taken <= asked {
			return nil
		}
		more := (taken - asked + step) / step * step
		asked += more
		return grow(more)
	}
}

func (x *plan) empty() bool { return len(x.out.kids) == 0 }

// facts is the digest over all that decides the fix-up's content.
func (x *plan) facts(diffID digest.Digest) digest.Digest {
	d := digest.SHA256.Digester()
	fmt.Fprintf(d.Hash(), "%s\n", diffID)
	var buf []byte
	for _, shared := range x.out.entries() {
		e := *shared
		e.Hash, e.Seq = [16]byte{}, 0
		buf = appendEntry(buf[:0], &e)
		d.Hash().Write(buf)
		if s, ok := x.copies[e.Path]; ok {
			fmt.Fprintf(d.Hash(), "\n%q %q\n", s.elem.name, s.path)
		}
	}
	return d.Digest()
}

// walk looks at what the layer has in a directory. bare is true if the parent has nothing there.
func (x *plan) walk(n *tree, at string, bare bool) error {
	for _, name := range n.names() {
		if err := x.interrupted(); err != nil {
			return err
		}
		kid := n.kids[name]
		if kid.entry.Type == unpack.Link {
			return errOrderMatters
		}
		if kid.entry.Type != unpack.Dir {
			continue
		}
		if err := x.dir(kid, inside(at, name), bare); err != nil {
			return err
		}
	}
	return nil
}

// dir looks at one directory of the layer.
func (x *plan) dir(n *tree, here string, bare bool) error {
	var below *found
	if !bare {
		var err error
		if below, err = x.parent.lookup(here); err != nil {
			return err
		}
	}
	isDir := below != nil && below.entry.Type == unpack.Dir
	switch {
	case !n.entry.Implied:
		return x.walk(n, here, n.entry.Opaque || !isDir)
	case isDir:
		e := *below.entry
		e.Opaque = n.entry.Opaque
		if unlike(&e, &n.entry) {
			e.Opaque = false // the layer's own directory hides what is below
			if err := x.put(e, here); err != nil {
				return err
			}
		}
		return x.walk(n, here, n.entry.Opaque)
	case below != nil && below.entry.Type == unpack.Symlink:
		return errOrderMatters
	case below != nil && below.nlink > 1:
		return errOrderMatters // its other names stay names of it
	case onlyWhiteouts(n):
		// It removes what is not there: no directory comes of that (E13), and what is no directory stays.
		x.drops = append(x.drops, dropped{n, here, below})
		return nil
	}
	return x.walk(n, here, true)
}

// drop hides directories, or those inside them where something is.
func (x *plan) drop(dirs []dropped) error {
	for _, d := range dirs {
		if err := x.interrupted(); err != nil {
			return err
		}
		at := d.at
		var err error
		switch there := x.out.find(at); {
		case d.dir.entry.Type != unpack.Dir:
		case there == nil && d.below != nil:
			err = x.put(*d.below.entry, at)
			x.copies[at] = source{&x.parent.elems[d.below.elem], at}
		case there == nil:
			err = x.put(unpack.Entry{Type: unpack.Whiteout}, at)
		case there.entry.Type == unpack.Dir:
			for name, k := range d.dir.kids {
				if err := x.drop([]dropped{{dir: k, at: path.Join(at, name)}}); err != nil {
					return err
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// onlyWhiteouts reports whether nothing below a directory of the layer adds anything. The layer's tree does not change,
// so that each directory is looked at once.
func onlyWhiteouts(n *tree) bool {
	if n.adds == unknown {
		n.adds = no
		for _, k := range n.kids {
			if !isMarker(k) && !(k.entry.Type == unpack.Dir && k.entry.Implied && onlyWhiteouts(k)) {
				n.adds = yes
				break
			}
		}
	}
	return n.adds == no
}

// isMarker reports whether a node is a whiteout that is no entry of its own: it makes no directories that it lies in.
func isMarker(n *tree) bool { return n.entry.Type == unpack.Whiteout && !n.entry.Opaque }

// put puts a node into the fix-up.
func (x *plan) put(e unpack.Entry, at string) error {
	e.Path, e.Implied, e.Inode, e.Seq = at, false, "", 0
	bytes := nodeMemory + 2*int64(len(at))
	if x.outBytes += bytes; x.outBytes > maxOut {
		err := fmt.Errorf("fix-up: more than %d bytes of entries: %w", int64(maxOut), errdefs.ErrFailedPrecondition)
		return cause.Mark(err, cause.LayerInvalid, "")
	}
	x.out.make(at).entry = e
	return x.grow(bytes)
}

// carry gives the directories that are only on the way the attributes that they have without the fix-up.
func (x *plan) carry(n *tree) error {
	for _, k := range n.kids {
		if err := x.interrupted(); err != nil {
			return err
		}
		if k.entry.Type != unpack.Dir {
			continue
		}
		if k.entry.Implied {
			e, err := x.shown(k.entry.Path)
			if err != nil {
				return err
			}
			k.entry = e
		}
		if err := x.carry(k); err != nil {
			return err
		}
	}
	return nil
}

// shown is the directory that layer and parent show at a path.
func (x *plan) shown(at string) (unpack.Entry, error) {
	e := defaultDir(at)
	own := x.layer.find(at)
	if own != nil && own.entry.Type == unpack.Dir && !own.entry.Implied {
		e = own.entry
		e.Path = at
	} else if f, err := x.parent.lookup(at); err != nil {
		return e, err
	} else if f != nil && f.entry.Type == unpack.Dir {
		e = *f.entry
	}
	e.Implied, e.Opaque = false, false
	return e, nil
}
