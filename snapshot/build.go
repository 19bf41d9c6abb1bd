package snapshot

import (
	"context"
	"os"

	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// built sums up what buildTree made.
type built struct {
	plainMarks bool // overlay does not understand the whiteouts, because the file system has none
	whiteouts  bool // there are whiteouts or opaque directories
	inodes     int64
	size       int64 // bytes of content
}

// buildTree fills the new directory dir with t and returns the entries for its seal, sorted.
func buildTree(ctx context.Context, dir string, t *tree, copies map[string]source, userXattr bool) (
	made built, entries []*unpack.Entry, err error,
) {
	root, err := os.Open(dir)
	if err != nil {
		return made, nil, err
	}
	defer root.Close()
	b := builder{copies: copies, userXattr: userXattr, made: map[string]*unpack.Entry{}, built: &made, root: root}
	if err := b.fill(ctx, root, t); err != nil {
		return made, nil, err
	}
	b.lost.warn(ctx, "fix-up")
	entries = t.entries()
	regroup(entries)
	return made, entries, nil
}

// builder makes a tree on disk.
type builder struct {
	root      *os.File
	copies    map[string]source
	userXattr bool
	made      map[string]*unpack.Entry // group of hard links -> the first that was made
	built     *built                   // what was made is counted here
	lost      lostXattrs
}

// fill makes what is in a directory, then sets the directory's own attributes.
func (b *builder) fill(ctx context.Context, dir *os.File, t *tree) error {
	m := unpack.Marks{Opaque: t.entry.Opaque}
	for _, name := range t.names() {
		k := t.kids[name]
		if k.entry.Type == unpack.Whiteout {
			plain, err := unpack.MakeWhiteout(dir, name)
			if err != nil {
				return pathError("whiteout", k.entry.Path, err)
			}
			b.built.plainMarks, m.Whiteouts = b.built.plainMarks || plain, m.Whiteouts || !plain
			b.built.whiteouts = true
			b.built.inodes++
			continue
		}
		if err := b.make(ctx, dir, name, k); err != nil {
			return err
		}
	}
	plain, err := unpack.Mark(dir, m, b.userXattr)
	if err != nil {
		return err
	}
	b.built.plainMarks, b.built.whiteouts = b.built.plainMarks || plain, b.built.whiteouts || m.Opaque
	b.built.inodes++
	had := t.entry.Xattrs
	err = unpack.SetAttrsOf(dir, &t.entry)
	b.lost.note(had, &t.entry)
	return err
}

func (b *builder) make(ctx context.Context, dir *os.File, name string, t *tree) error {
	if first := b.made[t.entry.Inode]; first != nil {
		t.entry.Hash, t.entry.Size, t.entry.Xattrs = first.Hash, first.Size, first.Xattrs
		return linkAt(b.root, first.Path, dir, name)
	}
	var content *os.File
	if src, ok := b.copies[t.entry.Path]; ok && t.entry.Type == unpack.File {
		f, err := openFileBelow(src.elem.root, src.path)
		if err != nil {
			return err
		}
		defer f.Close()
		content = f.File
	}
	had := t.entry.Xattrs
	if err := makeNode(ctx, dir, name, &t.entry, content); err != nil {
		return err
	}
	b.lost.note(had, &t.entry)
	if content != nil {
		if err := sealContent(ctx, dir, name, &t.entry); err != nil {
			return err
		}
	}
	b.built.size += t.entry.Size
	if t.entry.Inode != "" {
		b.made[t.entry.Inode] = &t.entry
	}
	if t.entry.Type != unpack.Dir {
		b.built.inodes++
		return nil
	}
	sub, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	return b.fill(ctx, sub, t)
}

// sealContent puts into the entry what the copy holds. It is not what the source holds: a container may be writing to
// that.
func sealContent(ctx context.Context, dir *os.File, name string, e *unpack.Entry) error {
	f, err := openOwnFile(dir, name, false)
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
