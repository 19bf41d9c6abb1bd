// Package unpack turns the tar stream of one image layer into one directory, in the form of overlay's upper directories.
//
// On disk it owns only the directory that it is given, by descriptor, and only until Extract returns. It knows no store,
// no database, and not where the bytes come from.
//
// Its invariant: whatever the stream holds, nothing outside that directory is created, changed, opened or read, and the
// entries that Extract returns are what ReadTree finds in the directory afterwards.
//
// The surprising rule: whiteouts never remove what the same layer adds, in whatever order they come. A whiteout of a name
// that the layer has as a directory makes that directory opaque; see docs/adr/0003-layer-application.md for every case.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// Options say for whom a layer is unpacked.
type Options struct {
	// Unprivileged is for a process that is an ordinary user: everything belongs to that user, setuid bits are cleared,
	// device nodes, security.* and trusted.* attributes are left out. It implies UserXattr. false: the process has root's
	// rights.
	Unprivileged bool
	// Confined is for a process that is root, but only in a user namespace or without CAP_SYS_ADMIN: device nodes, trusted.*
	// attributes and those of security.* that are not file capabilities are left out. It implies UserXattr. false: the
	// process has all of root's rights.
	Confined bool
	// UIDs and GIDs are the ids that the process's user namespace has, as ProcessIDMaps returns them. Others can't be set:
	// they are an error, and an ordinary user's ACLs that name them are left out. nil: all.
	UIDs, GIDs idmap.Map
	// UserXattr writes overlay's own attributes as user.overlay.*, for mounts with the option userxattr. false:
	// trusted.overlay.*.
	UserXattr bool
	// Limits bound what a layer may hold. Zero fields: the defaults.
	Limits Limits
	// Memory is called before an extraction keeps so many bytes more until its result is forgotten. It may wait; an error
	// ends the extraction. nil: there is enough.
	Memory func(ctx context.Context, bytes int64) error
	// Room is called before so many bytes are written to the file system; an error ends the extraction. nil: there is
	// enough.
	Room func(bytes int64) error
	// Aside opens an empty directory, beside the one that is extracted to, for files that an entry of the tar takes away
	// although above some parent they have other paths. It is called at most once, when the first such file comes up.
	// nil: they are removed.
	Aside func() (*os.File, error)
	// Descriptors is how many an extraction may have open at once, beside the directory and the stream. 0, and at most:
	// 200, which are worth it; at least: 5.
	Descriptors int

	walk bool // do as if openat2 were missing
}

// Limits bound what a layer may hold. The zero value of each field stands for its default.
type Limits struct {
	// Entries of the tar and directories that they imply. 0: 1,000,000.
	Entries int
	// Path is the length of a path in bytes, as the tar has it and as it resolves. 0, and at most: 4095.
	Path int
	// Xattr is the size of the value of one extended attribute in bytes. 0, and at most: 65536.
	Xattr int
	// Metadata is the sum of the bytes of all paths, link targets and extended attributes. 0: 512 MiB.
	Metadata int64
	// Strings is the sum of the bytes of what is kept in memory until the end: names, which paths consist of, link
	// targets, and different sets of extended attributes. 0: 64 MiB.
	Strings int64
	// Bytes of the stream, and separately of the contents of all files, holes included. 0: 256 GiB.
	Bytes int64
	// Holes is the sum of the bytes that the archive leaves out of sparse files. They are hashed as zeros: so many take a
	// third of a second. 0: 64 GiB.
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

// Result is what a layer was unpacked to.
type Result struct {
	// Count of entries, which Each visits.
	Count int
	// Size is what the layer takes on disk in bytes: contents in units of 4 KiB, and 4 KiB for each directory; every inode
	// counts once. It is computed from the entries, so that it does not depend on the filesystem.
	Size int64
	// Inodes on disk, the root directory and whiteouts included.
	Inodes int64
	// Empty: the layer has nothing but, maybe, attributes of the root directory.
	Empty bool
	// Root: the tar has an entry for the root directory itself.
	Root bool
	// Needs: a part of the layer depends on its parent: an implied directory other than the root, or a Link.
	Needs bool
	// Ordered: what comes of the layer above a parent depends on the order of its entries, which Steps returns.
	Ordered bool
	// Whiteouts: there are whiteouts or opaque directories.
	Whiteouts bool
	// Plain: some of them are not overlay's on disk, because the file system refused those, so that overlay must not show
	// the directory.
	Plain bool
	// OpaqueRoot: everything in the layers below is hidden.
	OpaqueRoot bool
	// Dropped are the names, sorted, of extended attributes that were left out because the file system does not have them.
	Dropped []string

	root  *node
	order *order
}

// Extract unpacks an uncompressed tar stream into dir, an open and empty directory, in the form of overlay's upper
// directories, and reads r to its end: what follows the end of the archive is read and ignored. It reads pieces of 4 to 256 KiB. After
// an error the directory holds anything; it has to be removed.
//
// Errors are of class ErrInvalidLayer when the content is to blame, errdefs.ErrFailedPrecondition when dir is not empty or
// an id has no place in the user namespace;
// errors of r, of the context and of the filesystem are wrapped as they are.
func Extract(ctx context.Context, dir *os.File, r io.Reader, opts *Options) (*Result, error) {
	if opts == nil {
		opts = &Options{}
	}
	x, err := newExtractor(int(dir.Fd()), *opts)
	defer runtime.KeepAlive(dir)
	if err != nil {
		return nil, fmt.Errorf("layer directory %q: %w", dir.Name(), err)
	}
	defer x.close()
	x.interrupted = ctx.Err
	err = x.readAll(ctx, r)
	if made := x.small.await(); err == nil {
		err = made
	}
	if err != nil {
		return nil, err
	}
	return x.finish(ctx)
}

// readAll applies every entry of the stream and reads it to its end.
func (x *extractor) readAll(ctx context.Context, r io.Reader) error {
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
		if err := x.makeRoom(ctx, hdr.Name); err != nil {
			return err
		}
		if err := x.entry(ctx, hdr, tr, src); err != nil {
			return err
		}
	}
	return src.Drain(ctx)
}

// memoryStep is how much memory is asked for at once: that of a thousand entries.
const memoryStep = 256 << 10

// makeRoom asks for what the entries so far take in memory, and for an inode of the next one.
func (x *extractor) makeRoom(ctx context.Context, name string) error {
	if x.memory > x.granted && x.opts.Memory != nil {
		step := (x.memory - x.granted + memoryStep) / memoryStep * memoryStep
		if err := x.opts.Memory(ctx, step); err != nil {
			return fmt.Errorf("layer: memory: %w", err)
		}
		x.granted += step
	}
	const inode = 4096
	return x.take(name, inode)
}

// take asks for room on the disk.
func (x *extractor) take(name string, bytes int64) error {
	if x.opts.Room == nil {
		return nil
	}
	if err := x.opts.Room(bytes); err != nil {
		return fmt.Errorf("%s: %w", entryOf(name), err)
	}
	return nil
}

// invalid is an error of class ErrInvalidLayer about the entry with this name.
func invalid(name, format string, args ...any) error {
	return fmt.Errorf("tar entry %q: %s: %w", printable.Clip(name), fmt.Sprintf(format, args...), stream.ErrInvalidLayer)
}
