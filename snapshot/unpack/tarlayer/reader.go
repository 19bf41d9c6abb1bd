package tarlayer

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// maxName is the longest name in bytes of a file and of an extended attribute.
const maxName = 255

// reader applies the entries of one tar to one tree of nodes.
type reader struct {
	opts   Options
	limits Limits
	w      Writer
	root   *Node

	seq      int32 // of the current entry, from 1
	count    int   // entries and implied directories so far
	metadata int64 // bytes, as Limits.Metadata counts them
	strings  int64 // bytes, as Limits.Strings counts them
	memory   int64 // bytes that all of it takes
	granted  int64 // bytes that Options.Memory was asked for
	contents int64 // bytes of all files
	holes    int64 // bytes of the contents that the archive leaves out

	sharedXattrs map[string]map[string]string // the different sets of attributes
	hasRootEntry bool

	// Entries come directory by directory: the last parent's path, if it has no symlinks, and the directory that it
	// leads to. Only a removal can change that.
	lastPath string
	last     *Node

	order   order
	content Content // of the current entry
	hash    *xxh3.Hasher
}

// impliedInode returns the attributes of directories without an entry.
func (x *reader) impliedInode() *Inode {
	ino := &Inode{Type: entry.Dir, Mode: 0o755}
	if x.opts.Unprivileged {
		ino.UID, ino.GID = x.opts.UID, x.opts.GID
	}
	return ino
}

// entry applies one entry of the tar.
func (x *reader) entry(ctx context.Context, hdr *tar.Header, body io.Reader, src *stream.Source) error {
	x.seq++
	x.order.next()
	if err := x.countEntry(hdr.Name, len(hdr.Linkname)); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // its records apply to all entries, and none of them is part of a layer
	}
	if x.tooLong(hdr.Name) {
		return invalid(hdr.Name, "path of %d bytes, more than %d", len(hdr.Name), x.limits.Path)
	}
	if hdr.Name == "" {
		return nil
	}
	name := path.Clean("/" + hdr.Name)[1:]
	if name == "" {
		return x.rootEntry(hdr)
	}
	parent, base := path.Split(name)
	parent = strings.TrimSuffix(parent, "/")
	if entry.Reserved(parent) {
		return nil
	}
	if strings.HasPrefix(base, entry.WhiteoutPrefix) {
		return x.whiteout(ctx, hdr.Name, parent, base)
	}
	ino, err := x.inode(hdr)
	if err != nil {
		return err
	}
	dir, followed, err := x.parent(ctx, hdr.Name, parent)
	if err != nil {
		return err
	}
	if followed {
		x.order.rewritten = true
		x.recordPath(name)
	}
	switch ino.Type {
	case entry.Dir:
		err = x.directory(ctx, hdr.Name, dir, base, ino)
	case entry.Link:
		err = x.link(ctx, hdr.Name, dir, base, ino)
	case entry.File:
		err = x.file(ctx, hdr, dir, base, ino, body, src)
	default:
		err = x.special(ctx, hdr.Name, dir, base, ino)
	}
	if err == nil {
		x.recordNode(dir.children[base], ino)
	}
	return err
}

// countEntry counts an entry or implied directory, and so many bytes of its strings that are kept in memory.
func (x *reader) countEntry(name string, bytes int) error {
	if x.count++; x.count > x.limits.Entries {
		return invalid(name, "more than %d entries", x.limits.Entries)
	}
	x.memory += entryMemory
	return x.countMetadata(name, bytes)
}

// What one entry takes in memory, in bytes: a node, an inode, a place in its directory's map, and the allocations of
// its strings. A map of attributes takes as much once more.
const (
	entryMemory  = 240
	xattrsMemory = 400
)

// countStrings counts bytes of strings that are kept in memory.
func (x *reader) countStrings(name string, bytes int) error {
	x.memory += int64(bytes)
	if x.strings += int64(bytes); x.strings > x.limits.Strings {
		return invalid(name, "more than %d bytes of names, link targets and xattrs", x.limits.Strings)
	}
	return nil
}

// countMetadata counts bytes of what the final list has: paths with all their components, link targets, xattrs.
func (x *reader) countMetadata(name string, bytes int) error {
	if x.metadata += int64(bytes); x.metadata > x.limits.Metadata {
		return invalid(name, "more than %d bytes of paths, link targets and xattrs", x.limits.Metadata)
	}
	return nil
}

// rootEntry gives the root directory its attributes. An entry of another type for the root is skipped.
func (x *reader) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return nil
	}
	ino, err := x.inode(hdr)
	if err != nil {
		return err
	}
	x.root.Inode, x.root.implied, x.root.seq, x.hasRootEntry = ino, false, x.seq, true
	return nil
}

// directory makes a directory, or gives one that exists the attributes of the entry.
func (x *reader) directory(ctx context.Context, name string, dir *Node, base string, ino *Inode) error {
	if old := dir.children[base]; old != nil && old.IsDir() {
		x.order.rewritten = x.order.rewritten || old.implied
		if *x.order.at(int(old.seq) - 1) == old { // an entry described it, and did not only imply it
			x.recordHeader(old.seq, old.Inode)
		}
		old.Inode, old.implied, old.whiteoutsOnly, old.seq = ino, false, false, x.seq
		return nil
	}
	_, err := x.mkdir(ctx, name, dir, base, ino)
	return err
}

// special makes symlinks, fifos and devices.
func (x *reader) special(ctx context.Context, name string, dir *Node, base string, ino *Inode) error {
	if _, err := x.clear(ctx, name, dir, base); err != nil {
		return err
	}
	n, err := x.add(name, dir, base, ino)
	if err != nil || ino.omitted {
		return err
	}
	return entryError(name, x.w.Special(n))
}

// file makes a regular file.
func (x *reader) file(
	ctx context.Context, hdr *tar.Header, dir *Node, base string, ino *Inode, body io.Reader, src *stream.Source,
) error {
	if x.contents += ino.Size; x.contents > x.limits.Bytes || x.contents < 0 {
		return invalid(hdr.Name, "more than %d bytes of files", x.limits.Bytes)
	}
	if _, err := x.clear(ctx, hdr.Name, dir, base); err != nil {
		return err
	}
	n, err := x.add(hdr.Name, dir, base, ino)
	if err != nil {
		return err
	}
	x.content = Content{x: x, hdr: hdr, ino: ino, body: body, src: src}
	return x.w.File(ctx, n, &x.content)
}
