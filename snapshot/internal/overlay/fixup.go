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

// Plan says what a fix-up holds: what a layer, unpacked without knowledge of its parent, has to show
// differently above this parent so that the stack is what applying the tars one after the other gives
// (docs/adr/0003-layer-application.md).
type Plan struct {
	layer   *tree.Node
	Parent  *Merged
	Tree    *tree.Node        // nodes that are still implied are directories on the way to the others
	drops   []dropped         // directories of the layer that are not to be seen
	Copies  map[string]Source // by path in out: where a file's content comes from
	lenient bool              // see replay

	outBytes int64                   // what out takes
	grow     func(bytes int64) error // asks for memory
	// interrupted returns why planning has to end, if it has to. It is called for every node that is looked at.
	interrupted func() error
}

// dropped is a directory of the layer, and what the parent, where there is something, has in its place.
type dropped struct {
	dir   *tree.Node
	at    string // the node's path
	below *found
}

// Source is a node whose content is copied.
type Source struct {
	elem *Element
	path string
}

// Layer is a layer for which a fix-up is planned.
type Layer struct {
	Entries tree.List
	Steps   tree.Steps  // of an ordered layer, otherwise nil
	Self    *Element    // the layer's own directory
	Aside   *Element    // nil if nothing was set aside
	NewDir  entry.Entry // the attributes of a directory without an entry
}

// PlanFixup plans what a layer needs above the parent. The plan is empty if it needs nothing.
//
// The time is proportional to the entries of the layer and of the parent, and to the length of their paths.
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

func (x *Plan) reset() {
	x.Tree, x.Copies, x.drops = tree.New(tree.DefaultDir(".")), map[string]Source{}, nil
}

// errOrderMatters means that the final tree of the layer does not determine the result above this parent.
var errOrderMatters = errors.New("the order of the entries matters")

// simple plans for a layer of which only the attributes of directories depend on the parent, and fails with
// errOrderMatters for any other.
func (x *Plan) simple() error {
	if err := x.walk(x.layer, ".", x.layer.Entry.Opaque); err != nil {
		return err
	}
	if err := x.drop(x.drops); err != nil {
		return err
	}
	return x.carry(x.Tree)
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

// walk looks at what the layer has in a directory. bare is true if the parent has nothing there.
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

// dir looks at one directory of the layer.
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
			e.Opaque = false // the layer's own directory hides what is below
			if err := x.put(e, here); err != nil {
				return err
			}
		}
		return x.walk(n, here, n.Entry.Opaque)
	case below != nil && below.entry.Type == entry.Symlink:
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
func (x *Plan) drop(dirs []dropped) error {
	for _, d := range dirs {
		if err := x.interrupted(); err != nil {
			return err
		}
		at := d.at
		var err error
		switch there := x.Tree.Find(at); {
		case d.dir.Entry.Type != entry.Dir:
		case there == nil && d.below != nil:
			err = x.put(*d.below.entry, at)
			x.Copies[at] = Source{&x.Parent.elems[d.below.elem], at}
		case there == nil:
			err = x.put(entry.Entry{Type: entry.Whiteout}, at)
		case there.Entry.Type == entry.Dir:
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

// onlyWhiteouts reports whether nothing below a directory of the layer adds anything. The layer's tree does not change,
// so that each directory is looked at once.
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

// isMarker reports whether a node is a whiteout that is no entry of its own: it makes no directories that it lies in.
func isMarker(n *tree.Node) bool { return n.Entry.Type == entry.Whiteout && !n.Entry.Opaque }

// put adds a node to the fix-up.
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

// carry gives the directories that are only on the way the attributes that they have without the fix-up.
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

// shown is the directory that layer and parent show at a path.
func (x *Plan) shown(at string) (entry.Entry, error) {
	e := tree.DefaultDir(at)
	own := x.layer.Find(at)
	if own != nil && own.Entry.Type == entry.Dir && !own.Entry.Implied {
		e = own.Entry
		e.Path = at
	} else if f, err := x.Parent.lookup(at); err != nil {
		return e, err
	} else if f != nil && f.entry.Type == entry.Dir {
		e = *f.entry
	}
	e.Implied, e.Opaque = false, false
	return e, nil
}
