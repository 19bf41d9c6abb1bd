package overlay

import (
	"context"
	"os"

	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Built counts the content of the directory that Build filled.
type Built struct {
	PlainMarks bool // there are whiteouts or marks that overlay does not understand; see beneath.MakeWhiteout
	Whiteouts  bool // there are whiteouts or opaque directories
	Inodes     int64
	Size       int64 // bytes of content
}

// Build fills the new directory dir with the tree t. It returns the entries for its seal, sorted by path. copies has
// the sources of file contents, by path; a file without a source is empty.
func Build(ctx context.Context, dir string, t *tree.Node, copies map[string]Source, userXattr bool) (
	made Built, entries []*entry.Entry, err error,
) {
	root, err := os.Open(dir)
	if err != nil {
		return made, nil, err
	}
	defer root.Close()
	b := builder{copies: copies, userXattr: userXattr, made: map[string]*entry.Entry{}, built: &made, root: root}
	if err := b.fill(ctx, root, t); err != nil {
		return made, nil, err
	}
	b.lost.Warn(ctx, "fix-up")
	entries = t.Entries()
	tree.Regroup(entries)
	return made, entries, nil
}

// builder makes a tree on disk.
type builder struct {
	root      *os.File
	copies    map[string]Source
	userXattr bool
	made      map[string]*entry.Entry // first entry that was made of each group of hard links
	built     *Built                  // counts what was made
	lost      nodes.LostXattrs
}

// fill makes the content of a directory, and then sets the attributes of the directory itself.
func (b *builder) fill(ctx context.Context, dir *os.File, t *tree.Node) error {
	m := beneath.Marks{Opaque: t.Entry.Opaque}
	for _, name := range t.Names() {
		k := t.Kids[name]
		if k.Entry.Type == entry.Whiteout {
			plain, err := beneath.MakeWhiteout(dir, name)
			if err != nil {
				return nodes.PathError("whiteout", k.Entry.Path, err)
			}
			b.built.PlainMarks, m.Whiteouts = b.built.PlainMarks || plain, m.Whiteouts || !plain
			b.built.Whiteouts = true
			b.built.Inodes++
			continue
		}
		if err := b.make(ctx, dir, name, k); err != nil {
			return err
		}
	}
	plain, err := beneath.Mark(dir, m, b.userXattr)
	if err != nil {
		return err
	}
	b.built.PlainMarks, b.built.Whiteouts = b.built.PlainMarks || plain, b.built.Whiteouts || m.Opaque
	b.built.Inodes++
	had := t.Entry.Xattrs
	err = beneath.SetAttrsOf(dir, &t.Entry)
	b.lost.Note(had, &t.Entry)
	return err
}

// make makes the node t as name in dir, with all its content.
func (b *builder) make(ctx context.Context, dir *os.File, name string, t *tree.Node) error {
	if first := b.made[t.Entry.Inode]; first != nil {
		t.Entry.Hash, t.Entry.Size, t.Entry.Xattrs = first.Hash, first.Size, first.Xattrs
		return nodes.Link(b.root, first.Path, dir, name)
	}
	var content *os.File
	if src, ok := b.copies[t.Entry.Path]; ok && t.Entry.Type == entry.File {
		f, err := nodes.OpenFileBelow(src.elem.Root, src.path)
		if err != nil {
			return err
		}
		defer f.Close()
		content = f.File
	}
	had := t.Entry.Xattrs
	if err := nodes.Make(ctx, dir, name, &t.Entry, content); err != nil {
		return err
	}
	b.lost.Note(had, &t.Entry)
	if content != nil {
		if err := sealContent(ctx, dir, name, &t.Entry); err != nil {
			return err
		}
	}
	b.built.Size += t.Entry.Size
	if t.Entry.Inode != "" {
		b.made[t.Entry.Inode] = &t.Entry
	}
	if t.Entry.Type != entry.Dir {
		b.built.Inodes++
		return nil
	}
	sub, err := nodes.OpenDir(dir, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	return b.fill(ctx, sub, t)
}

// sealContent sets the size and the hash of an entry from the copy of its file. It does not use the source, because a
// container may be writing to the source.
func sealContent(ctx context.Context, dir *os.File, name string, e *entry.Entry) error {
	f, err := nodes.OpenFile(dir, name, false)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	e.Size = info.Size()
	e.Hash, err = sparse.Sum128(ctx, int(f.Fd()), e.Size)
	return err
}
