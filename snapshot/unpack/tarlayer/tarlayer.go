// Package tarlayer decides what the tar of one image layer means: which entry makes, replaces, links or hides what.
//
// It owns nothing on disk and opens nothing. Read tells a Writer each decision, and the Writer makes a directory of
// them, or another form of the same layer.
//
// Its invariant: the tree of Nodes is what the Writer was asked to make. Every path is resolved in this tree, so that a
// symlink of the layer leads only to places in the layer.
//
// The surprising rule: whiteouts never remove what the same layer adds, in whatever order they come. A whiteout of a
// name that the layer has as a directory makes that directory opaque. docs/adr/0003-layer-application.md has every
// case.
package tarlayer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// Writer makes what Read decides. Read calls its methods from one goroutine. A directory is made before what lies in
// it, and finished after that. The first error of a method ends Read.
//
// A method may correct the attributes of the node's inode, if what it writes to cannot keep them exactly.
type Writer interface {
	// Mkdir makes the directory n. It gets its attributes from FinishDir.
	Mkdir(n *Node) error
	// File makes the regular file n. It reads the content before it returns, and sets the inode's Hash, and may write
	// both later, until Await. Errors name the entry.
	File(ctx context.Context, n *Node, content *Content) error
	// Special makes the symlink, fifo or device n, with its attributes.
	Special(n *Node) error
	// Link makes n another name of the inode that has the name old.
	Link(old, n *Node) error
	// SetAttrs makes the attributes of n, whose inode exists, those that the inode has now.
	SetAttrs(n *Node) error
	// Remove removes n with all below it. n is still in the tree.
	Remove(ctx context.Context, n *Node) error
	// SetAside moves the file n out of the tree and keeps its content under a name. It reports false, and moves
	// nothing, if the Writer keeps no such files.
	SetAside(n *Node, name string) (bool, error)
	// DropAside removes a file that SetAside kept.
	DropAside(name string) error
	// LacksXattr reports whether extended attributes of this name are known to be impossible to write. Inodes do not
	// get them.
	LacksXattr(name string) bool
	// Await returns when the inode is complete; nil: when all are. It returns the first error of any.
	Await(ino *Inode) error
	// FinishDir writes the whiteouts and the attributes of the directory n. Its content is complete.
	FinishDir(ctx context.Context, n *Node) error
}

// Options adapt the decisions to the process that unpacks the layer.
type Options struct {
	// Unprivileged is for a process that is an ordinary user: everything belongs to UID and GID, setuid bits are
	// cleared, and device nodes and security.* and trusted.* attributes are left out. false: the process has root's
	// rights.
	Unprivileged bool
	// UID and GID own everything if Unprivileged is set. 0: root.
	UID, GID uint32
	// Confined is for a process that is root only in a user namespace, or has no CAP_SYS_ADMIN: device nodes, trusted.*
	// attributes and those security.* attributes that are no file capabilities are left out. false: the process has all
	// of root's rights.
	Confined bool
	// UIDs and GIDs are the ids that the process's user namespace has. Others are an error, and an ordinary user's ACLs
	// that name them are left out. nil: all ids.
	UIDs, GIDs idmap.Map
	// Limits bound what a layer may hold. Zero fields: the defaults.
	Limits Limits
	// Memory is called before Read keeps so many bytes more until its result is forgotten. It may wait. An error ends
	// Read. nil: there is enough.
	Memory func(ctx context.Context, bytes int64) error
	// Room is called before so many bytes are written. An error ends Read. nil: there is enough.
	Room func(bytes int64) error
}

// Limits bound what a layer may hold. The zero value of each field stands for its default.
type Limits struct {
	// Entries is the number of entries of the tar and of directories that they imply. 0: 1,000,000.
	Entries int
	// Path is the length of a path in bytes, both as the tar has it and as it resolves. 0, and at most: 4095.
	Path int
	// Xattr is the size of the value of one extended attribute in bytes. 0, and at most: 65536.
	Xattr int
	// Metadata is the sum of the bytes of all paths, link targets and extended attributes. 0: 512 MiB.
	Metadata int64
	// Strings is the sum of the bytes of the strings that are kept in memory until the end: the names that paths
	// consist of, link targets, and different sets of extended attributes. 0: 64 MiB.
	Strings int64
	// Bytes is the size of the stream, and separately of the contents of all files with their holes. 0: 256 GiB.
	Bytes int64
	// Holes is the sum of the bytes that the archive leaves out of sparse files. They are hashed as zeros: 64 GiB
	// take a third of a second. 0: 64 GiB.
	Holes int64
}

func (l Limits) withDefaults() Limits {
	const maxPath, maxXattr = 4095, 65536 // PATH_MAX without its NUL, XATTR_SIZE_MAX
	if l.Entries <= 0 {
		l.Entries = 1_000_000
	}
	if l.Path <= 0 || l.Path > maxPath {
		l.Path = maxPath
	}
	if l.Xattr <= 0 || l.Xattr > maxXattr {
		l.Xattr = maxXattr
	}
	if l.Metadata <= 0 {
		l.Metadata = 512 << 20
	}
	if l.Strings <= 0 {
		l.Strings = 64 << 20
	}
	if l.Bytes <= 0 {
		l.Bytes = 256 << 30
	}
	if l.Holes <= 0 {
		l.Holes = 64 << 30
	}
	return l
}

// Read reads the uncompressed tar stream r to its end, has w make what the entries mean, and returns what the layer
// became. Bytes after the end of the archive are read and ignored. It reads pieces of 4 to 256 KiB. opts may be nil.
//
// Errors are of class stream.ErrInvalidLayer if the content is to blame, and of class errdefs.ErrFailedPrecondition if
// the user namespace does not map an id. Errors of r, of w and of ctx are wrapped.
func Read(ctx context.Context, r io.Reader, w Writer, opts *Options) (*Result, error) {
	if opts == nil {
		opts = &Options{}
	}
	x := &reader{opts: *opts, limits: opts.Limits.withDefaults(), w: w, hash: xxh3.New()}
	x.root = &Node{Inode: x.impliedInode(), implied: true}
	err := x.readAll(ctx, r)
	if werr := w.Await(nil); err == nil {
		err = werr
	}
	if err != nil {
		return nil, err
	}
	return x.finish(ctx)
}

// readAll applies every entry of the stream and reads it to its end.
func (x *reader) readAll(ctx context.Context, r io.Reader) error {
	src := stream.NewSource(r, x.limits.Bytes, stream.LargeReads)
	tr := tar.NewReader(src)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !(errors.Is(err, tar.ErrInsecurePath) && hdr != nil) {
			return src.Blame(fmt.Sprintf("tar entry %d", x.seq+1), err)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("layer: %w", err)
		}
		if err := x.reserve(ctx, hdr.Name); err != nil {
			return err
		}
		if err := x.entry(ctx, hdr, tr, src); err != nil {
			return err
		}
	}
	return src.Drain(ctx)
}

// memoryStep is the unit in bytes in which memory is asked for: that of a thousand entries.
const memoryStep = 256 << 10

// reserve asks for the memory that the entries so far take, and for the inode of the next entry on disk.
func (x *reader) reserve(ctx context.Context, name string) error {
	if x.memory > x.granted && x.opts.Memory != nil {
		step := (x.memory - x.granted + memoryStep) / memoryStep * memoryStep
		if err := x.opts.Memory(ctx, step); err != nil {
			return fmt.Errorf("layer: memory: %w", err)
		}
		x.granted += step
	}
	const inode = 4096
	return x.reserveRoom(name, inode)
}

// reserveRoom asks for room on the disk.
func (x *reader) reserveRoom(name string, bytes int64) error {
	if x.opts.Room == nil {
		return nil
	}
	return entryError(name, x.opts.Room(bytes))
}

// entryName names an entry of the tar in an error.
func entryName(name string) string { return fmt.Sprintf("tar entry %q", printable.Clip(name)) }

// entryError adds the entry's name to an error; nil stays nil.
func entryError(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", entryName(name), err)
}

// invalid returns an error of class stream.ErrInvalidLayer about the entry of this name.
func invalid(name, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", entryName(name), fmt.Sprintf(format, args...), stream.ErrInvalidLayer)
}
