package tree

import (
	"container/heap"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"slices"
	"strings"

	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Flat are layers on top of each other as overlay shows them: whiteouts and opaque directories take effect and are
// gone, groups of hard links keep the names that are left. The layers are seals, whose entries are sorted; they are
// read side by side, so that the memory depends on the number of layers and not on what is in them.
type Flat struct {
	layers []*Seal // lowest first
	seed   maphash.Seed
	// groups are the hard links by a hash of layer and name: how many names are left. There may be as many as entries.
	groups map[uint64]uint32

	Count        int
	Size, Inodes int64
	Root         entry.Entry
}

// Flatten reads the layers once and sums up what they show.
func Flatten(ctx context.Context, layers []*Seal) (*Flat, error) {
	f := &Flat{layers: layers, seed: maphash.MakeSeed(), groups: map[uint64]uint32{}}
	err := f.merge(ctx, func(e *entry.Entry, layer int) error {
		if e.Path == "." {
			f.Root = *e
		}
		f.Count++
		if e.Inode != "" {
			if f.groups[f.group(layer, e)]++; f.groups[f.group(layer, e)] > 1 {
				return nil
			}
		}
		f.Size += e.Size
		f.Inodes++
		return nil
	})
	return f, err
}

// group is what stands for a group of hard links among all layers.
func (f *Flat) group(layer int, e *entry.Entry) uint64 {
	return maphash.Comparable(f.seed, struct {
		layer int
		inode string
	}{layer, e.Inode})
}

// Each returns the entries sorted by path bytes, "." first, with the root directory as it was set. A group of hard
// links is named by its first path, and a group of one is none.
func (f *Flat) Each(ctx context.Context) List {
	return func(visit func(*entry.Entry) error) error {
		left, first := map[uint64]uint32{}, map[uint64]string{}
		return f.merge(ctx, func(e *entry.Entry, layer int) error {
			if e.Path == "." {
				e = &f.Root
			}
			if e.Inode != "" {
				g := f.group(layer, e)
				switch n := f.groups[g]; {
				case n < 2:
					e.Inode = ""
				case left[g] == 0:
					left[g], first[g], e.Inode = n-1, e.Path, e.Path
				default:
					e.Inode = first[g]
					if left[g]--; left[g] == 0 {
						delete(left, g)
						delete(first, g)
					}
				}
			}
			return visit(e)
		})
	}
}

// merge calls visit for each entry that the layers show, with the layer that has it.
func (f *Flat) merge(ctx context.Context, visit func(e *entry.Entry, layer int) error) error {
	heads := &headsOf{}
	for i, l := range f.layers {
		if err := heads.add(&head{layer: i, cursor: l.Cursor()}); err != nil {
			return err
		}
	}
	interrupted := interrupt.Every(ctx)
	var hidden hides
	root := DefaultDir(".")
	if err := f.mergeRoot(heads, &root, &hidden, visit); err != nil {
		return err
	}
	var same []*head
	for heads.Len() > 0 {
		if err := interrupted(); err != nil {
			return err
		}
		same = append(same[:0], heads.pop())
		path := same[0].e.Path
		for heads.Len() > 0 && (*heads)[0].e.Path == path {
			same = append(same, heads.pop())
		}
		if e, layer := hidden.show(path, same); e != nil {
			e.Opaque = false
			if err := visit(e, layer); err != nil {
				return err
			}
		}
		for _, h := range same {
			if err := heads.add(h); err != nil {
				return err
			}
		}
	}
	return nil
}

// mergeRoot merges the root directories. A root that a layer only implies does not change that of the layers below.
func (f *Flat) mergeRoot(heads *headsOf, root *entry.Entry, hidden *hides,
	visit func(*entry.Entry, int) error,
) error {
	said, opaque := -1, -1
	var same []*head
	for heads.Len() > 0 && (*heads)[0].e.Path == "." {
		h := heads.pop()
		same = append(same, h)
		if !h.e.Implied && h.layer > said {
			said, *root = h.layer, *h.e
		}
		if h.e.Opaque {
			opaque = max(opaque, h.layer)
		}
	}
	root.Opaque = false
	hidden.below = max(opaque, 0)
	if err := visit(root, said); err != nil {
		return err
	}
	for _, h := range same {
		if err := heads.add(h); err != nil {
			return err
		}
	}
	return nil
}

// hides are the directories below which layers are hidden. Those whose content is not over yet lie in each other, or
// come before what lies in the one before them ("a", "a-", "a--/x", "a-/x", "a/x").
type hides struct {
	below int // layers that are hidden everywhere
	stack []hide
}

// hide hides the layers below one inside a directory.
type hide struct {
	dir   string
	below int
}

// show returns what the layers' entries of one path, topmost first, show, nil when nothing. The entry of a layer whose
// parent directory is hidden does not count.
func (h *hides) show(path string, same []*head) (shown *entry.Entry, layer int) {
	for n := len(h.stack); n > 0; n = len(h.stack) {
		top := h.stack[n-1].dir
		if strings.HasPrefix(path, top) && len(path) > len(top) && path[len(top)] <= '/' {
			break
		}
		h.stack = h.stack[:n-1]
	}
	below := h.below
	for n := len(h.stack) - 1; n >= 0; n-- {
		if path[len(h.stack[n].dir)] == '/' {
			below = h.stack[n].below
			break
		}
	}
	for i, s := range same {
		if s.layer < below {
			break
		}
		if s.e.Type == entry.Link { // its fix-up has the file
			continue
		}
		goesOn := s.e.Type == entry.Dir && !s.e.Opaque // what the layers below have inside is seen
		if shown == nil && s.e.Type != entry.Whiteout {
			shown, layer = s.e, s.layer
		}
		if !goesOn {
			if slices.ContainsFunc(same[i+1:], func(s *head) bool { return s.e.Type == entry.Dir }) {
				h.stack = append(h.stack, hide{path, s.layer})
			}
			break
		}
	}
	return shown, layer
}

// head is the first entry of a layer that was not merged yet.
type head struct {
	layer  int
	cursor *Cursor
	e      *entry.Entry
}

// headsOf is a heap of heads: the lowest path first, and of one path the topmost layer first.
type headsOf []*head

func (h headsOf) Len() int      { return len(h) }
func (h headsOf) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *headsOf) Push(x any)   { *h = append(*h, x.(*head)) }

func (h headsOf) Less(i, j int) bool {
	c := entry.ComparePaths(h[i].e.Path, h[j].e.Path)
	return c < 0 || c == 0 && h[i].layer > h[j].layer
}

// Pop is for package heap.
func (h *headsOf) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

func (h *headsOf) pop() *head { return heap.Pop(h).(*head) }

// add goes to the next entry of a layer, if it has one.
func (h *headsOf) add(x *head) (err error) {
	if x.e, err = x.cursor.Next(); errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		heap.Push(h, x)
	}
	return err
}

// Regroup names each group of hard links by its first path, and forgets groups of one. Entries are sorted.
func Regroup(es []*entry.Entry) {
	first := map[string]*entry.Entry{}
	many := map[string]bool{}
	for _, e := range es {
		if e.Inode == "" {
			continue
		}
		if first[e.Inode] != nil {
			many[e.Inode] = true
		} else {
			first[e.Inode] = e
		}
	}
	for _, e := range es {
		switch {
		case e.Inode == "":
		case many[e.Inode]:
			e.Inode = first[e.Inode].Path
		default:
			e.Inode = ""
		}
	}
}
