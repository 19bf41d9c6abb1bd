package overlay

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Plan is the content of a fix-up. A layer is unpacked without knowledge of its parent. Where overlay would therefore
// show something other than the result of applying the tars one after the other, the fix-up has the difference
// (docs/adr/0003-layer-application.md).
type Plan struct {
	layer   *tree.Node
	Parent  *Merged
	Tree    *tree.Node        // the nodes of the fix-up; an implied one only leads to others
	drops   []dropped         // directories of the layer that must not be visible
	Copies  map[string]Source // sources of file contents, by path in Tree
	lenient bool              // see replay.lenient

	outBytes int64                   // bytes that Tree takes
	grow     func(bytes int64) error // is called before more memory is taken
	// interrupted returns an error if planning has to end. It is called for every node that is visited.
	interrupted func() error
}

// dropped is a directory of the layer that must not be visible.
type dropped struct {
	dir   *tree.Node
	at    string // path of dir
	below *found // what the parent has at the path; nil: nothing
}

// Source is a file whose content is copied into a fix-up.
type Source struct {
	elem *Element
	path string
}

// Layer is a layer for which a fix-up is planned.
type Layer struct {
	Entries tree.List
	Steps   tree.Steps  // of an ordered layer, otherwise nil
	Self    *Element    // the layer's own directory
	Aside   *Element    // the files that were set aside; nil: none
	NewDir  entry.Entry // attributes of a directory without an entry
}

// PlanFixup plans the fix-up of a layer above the parent. The plan is empty if the layer needs none. For lenient, see
// replay.lenient. PlanFixup calls grow with the memory that it takes.
//
// The time is proportional to the number of entries of the layer and of the parent, and to the length of their paths.
// An error about the layer itself is of class errdefs.ErrFailedPrecondition or wraps stream.ErrInvalidLayer.
func PlanFixup(ctx context.Context, l Layer, parent *Merged, lenient bool, grow func(bytes int64) error) (
	*Plan, error,
) {
	grow = inSteps(grow)
	layer, err := tree.Read(l.Entries, grow)
	if err != nil {
		return nil, err
	}
	x := &Plan{layer: layer, Parent: parent, lenient: lenient, grow: grow, interrupted: interrupt.Every(ctx)}
	if l.Steps == nil {
		x.reset()
		if err := x.simple(); !errors.Is(err, errOrderMatters) {
			return x, err
		}
		l.Steps = tree.StepsOf(l.Entries, grow)
	}
	x.reset()
	return x, x.replayed(l)
}

// reset empties the plan.
func (x *Plan) reset() {
	x.Tree, x.Copies, x.drops = tree.New(tree.DefaultDir(".")), map[string]Source{}, nil
}

// errOrderMatters means that the final tree of the layer does not determine the result above this parent.
var errOrderMatters = errors.New("the order of the entries matters")

// simple plans the fix-up of a layer of which only the attributes of directories depend on the parent. It returns
// errOrderMatters for any other layer.
func (x *Plan) simple() error {
	if err := x.walk(x.layer, ".", x.layer.Entry.Opaque); err != nil {
		return err
	}
	if err := x.drop(x.drops); err != nil {
		return err
	}
	return x.carry(x.Tree)
}

// maxOut limits the memory of the nodes of a fix-up, in bytes. Their paths may be longer than those of the layer.
const maxOut = 192 << 20

// inSteps returns a function that sums up bytes, and calls grow with multiples of 256 KiB.
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

// Empty reports whether the layer needs no fix-up.
func (x *Plan) Empty() bool { return len(x.Tree.Kids) == 0 }

// Facts returns a digest of everything that determines the content of the fix-up.
func (x *Plan) Facts(diffID digest.Digest) digest.Digest {
	d := digest.SHA256.Digester()
	fmt.Fprintf(d.Hash(), "%s\n", diffID)
	var buf []byte
	for _, shared := range x.Tree.Entries() {
		e := *shared
		e.Hash, e.Seq = [16]byte{}, 0
		buf = tree.AppendEntry(buf[:0], &e)
		d.Hash().Write(buf)
		if s, ok := x.Copies[e.Path]; ok {
			fmt.Fprintf(d.Hash(), "\n%q %q\n", s.elem.Name, s.path)
		}
	}
	return d.Digest()
}

// walk plans for the content of a directory of the layer. bare is true if nothing of the parent is visible there.
func (x *Plan) walk(n *tree.Node, at string, bare bool) error {
	for _, name := range n.Names() {
		if err := x.interrupted(); err != nil {
			return err
		}
		kid := n.Kids[name]
		if kid.Entry.Type == entry.Link {
			return errOrderMatters
		}
		if kid.Entry.Type != entry.Dir {
			continue
		}
		if err := x.dir(kid, inside(at, name), bare); err != nil {
			return err
		}
	}
	return nil
}

// dir plans for one directory of the layer. here is its path, and bare is as in walk.
func (x *Plan) dir(n *tree.Node, here string, bare bool) error {
	var below *found
	if !bare {
		var err error
		if below, err = x.Parent.lookup(here); err != nil {
			return err
		}
	}
	isDir := below != nil && below.entry.Type == entry.Dir
	switch {
	case !n.Entry.Implied:
		return x.walk(n, here, n.Entry.Opaque || !isDir)
	case isDir:
		e := *below.entry
		e.Opaque = n.Entry.Opaque
		if tree.Differ(&e, &n.Entry) {
			e.Opaque = false // the directory of the layer already hides the parent
			if err := x.put(e, here); err != nil {
				return err
			}
		}
		return x.walk(n, here, n.Entry.Opaque)
	case below != nil && below.entry.Type == entry.Symlink:
		return errOrderMatters
	case below != nil && below.nlink > 1:
		return errOrderMatters // its other names must stay names of the same inode
	case onlyWhiteouts(n):
		// The whiteouts remove nothing: they make no directory (E13), and a file at the path stays.
		x.drops = append(x.drops, dropped{n, here, below})
		return nil
	}
	return x.walk(n, here, true)
}

// drop hides directories of the layer. If the fix-up has a directory at the path, it hides those inside instead.
func (x *Plan) drop(dirs []dropped) error {
	for _, d := range dirs {
		if err := x.interrupted(); err != nil {
			return err
		}
		at := d.at
		var err error
		switch planned := x.Tree.Find(at); {
		case d.dir.Entry.Type != entry.Dir:
		case planned == nil && d.below != nil:
			err = x.put(*d.below.entry, at)
			x.Copies[at] = Source{&x.Parent.elems[d.below.elem], at}
		case planned == nil:
			err = x.put(entry.Entry{Type: entry.Whiteout}, at)
		case planned.Entry.Type == entry.Dir:
			for name, k := range d.dir.Kids {
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

// onlyWhiteouts reports whether a directory of the layer contains nothing but whiteouts, at any depth. It caches the
// result in Adds.
func onlyWhiteouts(n *tree.Node) bool {
	if n.Adds == tree.Unknown {
		n.Adds = tree.No
		for _, k := range n.Kids {
			if !isMarker(k) && !(k.Entry.Type == entry.Dir && k.Entry.Implied && onlyWhiteouts(k)) {
				n.Adds = tree.Yes
				break
			}
		}
	}
	return n.Adds == tree.No
}

// isMarker reports whether a node is a whiteout of a marker in the tar, which implies no directories. An opaque
// whiteout is a device in the tar, which implies them as any entry does.
func isMarker(n *tree.Node) bool { return n.Entry.Type == entry.Whiteout && !n.Entry.Opaque }

// put adds a node to the fix-up. It returns an error of class errdefs.ErrFailedPrecondition if the fix-up gets too
// large.
func (x *Plan) put(e entry.Entry, at string) error {
	e.Path, e.Implied, e.Inode, e.Seq = at, false, "", 0
	bytes := tree.NodeMemory + 2*int64(len(at))
	if x.outBytes += bytes; x.outBytes > maxOut {
		err := fmt.Errorf("fix-up: more than %d bytes of entries: %w", int64(maxOut), errdefs.ErrFailedPrecondition)
		return cause.Mark(err, cause.LayerInvalid, "")
	}
	x.Tree.Make(at).Entry = e
	return x.grow(bytes)
}

// carry sets the attributes of directories that are in the fix-up only because of their content: they get those that
// they have without the fix-up.
func (x *Plan) carry(n *tree.Node) error {
	for _, k := range n.Kids {
		if err := x.interrupted(); err != nil {
			return err
		}
		if k.Entry.Type != entry.Dir {
			continue
		}
		if k.Entry.Implied {
			e, err := x.shown(k.Entry.Path)
			if err != nil {
				return err
			}
			k.Entry = e
		}
		if err := x.carry(k); err != nil {
			return err
		}
	}
	return nil
}

// shown returns the attributes of the directory that the layer above the parent shows at a path.
func (x *Plan) shown(at string) (entry.Entry, error) {
	e := tree.DefaultDir(at)
	upper := x.layer.Find(at)
	if upper != nil && upper.Entry.Type == entry.Dir && !upper.Entry.Implied {
		e = upper.Entry
		e.Path = at
	} else if f, err := x.Parent.lookup(at); err != nil {
		return e, err
	} else if f != nil && f.entry.Type == entry.Dir {
		e = *f.entry
	}
	e.Implied, e.Opaque = false, false
	return e, nil
}
