package tarlayer

import (
	"slices"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Each calls visit for every entry, sorted by the bytes of Path, "." first, and returns the first error. The entry is
// valid until visit returns. A list of all entries would take more memory than the result itself.
func (r *Result) Each(visit func(*entry.Entry) error) error {
	l := lister{visit: visit, first: map[*Inode]*Node{}}
	if err := l.one(".", r.root); err != nil {
		return err
	}
	return l.content(r.root)
}

// Entries returns all entries in the order of Each.
func (r *Result) Entries() []entry.Entry {
	es := make([]entry.Entry, 0, r.Count)
	_ = r.Each(func(e *entry.Entry) error { // never fails
		es = append(es, *e)
		return nil
	})
	return es
}

// lister goes through the nodes of a layer in the order of their paths.
type lister struct {
	visit func(*entry.Entry) error
	path  []byte           // of the current directory, with a slash at its end if it is not the root
	first map[*Inode]*Node // the first names of inodes
	all   bool             // first has all inodes, not only those with several names
	e     entry.Entry
}

// key sorts the paths in a directory. A subdirectory has two keys: one for itself, and one for its content, as if its
// name ended with a slash. Other names may come between them, as in "a", "a-b", "a/b".
type key struct {
	name    string
	n       *Node // nil for a whiteout
	w       whiteout
	content bool
}

// compareKeys orders keys by the bytes of their paths.
func compareKeys(a, b key) int {
	n := min(len(a.name), len(b.name))
	if c := strings.Compare(a.name[:n], b.name[:n]); c != 0 {
		return c
	}
	return a.after(n) - b.after(n)
}

// after returns the byte after the first n bytes, -1 at the end.
func (k *key) after(n int) int {
	switch {
	case n < len(k.name):
		return int(k.name[n])
	case k.content:
		return '/'
	}
	return -1
}

// content visits all that lies in a directory.
func (l *lister) content(dir *Node) error {
	keys := make([]key, 0, len(dir.children)+len(dir.whiteouts))
	for name, n := range dir.children {
		keys = append(keys, key{name: name, n: n})
		if n.IsDir() && len(n.children)+len(n.whiteouts) > 0 {
			keys = append(keys, key{name: name, n: n, content: true})
		}
	}
	for name, w := range dir.whiteouts {
		keys = append(keys, key{name: name, w: w})
	}
	slices.SortFunc(keys, compareKeys)
	at := len(l.path)
	for _, k := range keys {
		l.path = append(l.path[:at], k.name...)
		var err error
		switch {
		case k.n == nil:
			l.e = entry.Entry{Path: string(l.path), Type: entry.Whiteout, Seq: int(k.w.seq), Opaque: k.w.device}
			err = l.visit(&l.e)
		case k.content:
			l.path = append(l.path, '/')
			err = l.content(k.n)
		default:
			err = l.one(string(l.path), k.n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// one visits a single path.
func (l *lister) one(path string, n *Node) error {
	l.e = n.Inode.Entry()
	l.e.Path, l.e.Implied, l.e.Opaque, l.e.Seq = path, n.implied, n.Opaque(), int(n.seq)
	if l.all && l.first[n.Inode] == nil {
		l.first[n.Inode] = n
	}
	if n.Inode.names > 1 && n.Inode.Type != entry.Link {
		if l.first[n.Inode] == nil {
			l.first[n.Inode] = n
		}
		l.e.Inode = l.first[n.Inode].Path()
	}
	return l.visit(&l.e)
}
