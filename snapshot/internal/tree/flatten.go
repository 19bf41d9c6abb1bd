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

// Flat is the list of what overlay shows of a stack of layers: whiteouts and opaque directories have had their effect
// and are left out, and a group of hard links has the names that remain visible. The seals of the layers are sorted and
// are read side by side, so the memory depends on the number of layers and not on their entries.
type Flat struct {
	layers []*Seal // lowest first
	seed   maphash.Seed
	// groups has the number of visible names of each group of hard links, by a hash of layer and group. There may be as
	// many groups as entries.
	groups map[uint64]uint32

	Count        int
	Size, Inodes int64
	Root         entry.Entry
}

// Flatten reads the layers, lowest first, and counts what they show.
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

// group returns the key of a group of hard links, which differs from those of all other layers.
func (f *Flat) group(layer int, e *entry.Entry) uint64 {
	return maphash.Comparable(f.seed, struct {
		layer int
		inode string
	}{layer, e.Inode})
}

// Each returns the list. Its first entry is Root. The name of a group of hard links is its first path, and a group with
// one name is none.
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

// merge calls visit for each visible entry, with the number of its layer. The number is -1 for the root if no layer
// has an entry for it.
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

// mergeRoot merges the root directories. An implied root of a layer does not change that of the layers below.
func (f *Flat) mergeRoot(heads *headsOf, root *entry.Entry, hidden *hides,
	visit func(*entry.Entry, int) error,
) error {
	described, opaque := -1, -1 // the topmost layers with an entry for the root and with an opaque root
	var same []*head
	for heads.Len() > 0 && (*heads)[0].e.Path == "." {
		h := heads.pop()
		same = append(same, h)
		if !h.e.Implied && h.layer > described {
			described, *root = h.layer, *h.e
		}
		if h.e.Opaque {
			opaque = max(opaque, h.layer)
		}
	}
	root.Opaque = false
	hidden.below = max(opaque, 0)
	if err := visit(root, described); err != nil {
		return err
	}
	for _, h := range same {
		if err := heads.add(h); err != nil {
			return err
		}
	}
	return nil
}

// hides has the directories inside which lower layers are hidden, at a position in the sorted list of paths.
type hides struct {
	below int // layers with a lower number are hidden everywhere
	// stack has the directories whose content may still follow. Each one lies in the one before it, or sorts between
	// the one before it and the content of that one: "a-" does so in the list "a", "a-", "a--/x", "a-/x", "a/x".
	stack []hide
}

// hide hides the layers with a number lower than below inside a directory.
type hide struct {
	dir   string
	below int
}

// show returns the entry that is visible at a path, nil if there is none. It gets the entries that the layers have for
// the path, topmost first. The entry of a layer that is hidden in the parent directory does not count.
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
		if s.e.Type == entry.Link { // the file is in the fix-up
			continue
		}
		merges := s.e.Type == entry.Dir && !s.e.Opaque // the content that the layers below have is visible
		if shown == nil && s.e.Type != entry.Whiteout {
			shown, layer = s.e, s.layer
		}
		if !merges {
			if slices.ContainsFunc(same[i+1:], func(s *head) bool { return s.e.Type == entry.Dir }) {
				h.stack = append(h.stack, hide{path, s.layer})
			}
			break
		}
	}
	return shown, layer
}

// head is the next entry of a layer.
type head struct {
	layer  int
	cursor *Cursor
	e      *entry.Entry
}

// headsOf is a heap of heads: the lowest path first and, for equal paths, the topmost layer first.
type headsOf []*head

func (h headsOf) Len() int      { return len(h) }
func (h headsOf) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *headsOf) Push(x any)   { *h = append(*h, x.(*head)) }

func (h headsOf) Less(i, j int) bool {
	c := entry.ComparePaths(h[i].e.Path, h[j].e.Path)
	return c < 0 || c == 0 && h[i].layer > h[j].layer
}

// Pop implements heap.Interface.
func (h *headsOf) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

func (h *headsOf) pop() *head { return heap.Pop(h).(*head) }

// add adds the next entry of a layer to the heap, if it has one.
func (h *headsOf) add(x *head) (err error) {
	if x.e, err = x.cursor.Next(); errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		heap.Push(h, x)
	}
	return err
}

// Regroup gives each group of hard links its first path as name, and dissolves groups with one name. The entries are
// sorted.
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
