package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// build makes a planned fix-up in the new directory staged, and seals it.
func (s *Store) build(ctx context.Context, staged string, p *plan) (metadata.Layer, error) {
	return s.buildTree(ctx, staged, p.out, p.copies)
}

// buildTree makes t in the new directory staged, and seals it. After an error nothing of it is left.
func (s *Store) buildTree(ctx context.Context, staged string, t *tree,
	copies map[string]source,
) (rec metadata.Layer, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.dir.Trash(staged))
		}
	}()
	fs := filepath.Join(staged, "fs")
	if err := errors.Join(os.Mkdir(staged, 0o700), os.Mkdir(fs, 0o755)); err != nil {
		return rec, err
	}
	root, err := os.Open(fs)
	if err != nil {
		return rec, err
	}
	defer root.Close()
	b := builder{copies: copies, userXattr: s.opts.UserXattr, made: map[string]*unpack.Entry{}, rec: &rec, root: root}
	if err := b.fill(ctx, root, t); err != nil {
		return rec, err
	}
	b.lost.warn(ctx, "fix-up")
	entries := t.entries()
	regroup(entries)
	rec.Created = time.Now().UTC()
	return rec, writeSeal(filepath.Join(staged, "seal"), rec, len(entries), entriesOf(entries), true)
}

// builder makes a tree on disk.
type builder struct {
	root      *os.File
	copies    map[string]source
	userXattr bool
	made      map[string]*unpack.Entry // group of hard links -> the first that was made
	rec       *metadata.Layer          // what was made is counted here
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
			b.rec.PlainMarks, m.Whiteouts = b.rec.PlainMarks || plain, m.Whiteouts || !plain
			b.rec.Whiteouts = true
			b.rec.Inodes++
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
	b.rec.PlainMarks, b.rec.Whiteouts = b.rec.PlainMarks || plain, b.rec.Whiteouts || m.Opaque
	b.rec.Inodes++
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
	b.rec.Size += t.entry.Size
	if t.entry.Inode != "" {
		b.made[t.entry.Inode] = &t.entry
	}
	if t.entry.Type != unpack.Dir {
		b.rec.Inodes++
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
