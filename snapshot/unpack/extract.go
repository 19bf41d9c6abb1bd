package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

const (
	maxName    = 255
	bufferSize = 256 << 10
)

// extractor applies the entries of one tar to one directory.
type extractor struct {
	opts   Options
	limits Limits
	prefix string // of overlay's own xattrs
	root   *node
	dirs   dirCache
	// uid and gid are what new inodes get without a chown.
	uid, gid uint32
	// coarse: the filesystem does not keep every nanosecond, so that times have to be read back.
	coarse bool

	seq         int32 // of the current entry
	count       int   // entries and implied directories so far
	metadata    int64
	held        int64                        // bytes of strings
	memory      int64                        // what all of it takes
	interrupted func() error                 // returns why the extraction has to end
	granted     int64                        // as Options.Memory was asked for
	shared      map[string]map[string]string // the sets of attributes that there are
	contents    int64
	holes       int64 // bytes of the contents that the archive leaves out
	rooted      bool  // the tar has an entry for the root
	dropped     droppedXattrs

	// Entries come directory by directory: the last parent path without symlinks, and where it led. Only a removal can
	// change that.
	lastPath string
	last     *node

	order order
	small gatherer
	buf   []byte // for the others
	hash  *xxh3.Hasher
}

// newExtractor takes over the empty directory: its attributes are set as those of every other one, at the end.
func newExtractor(fd int, opts Options) (*extractor, error) {
	opener, err := beneath.NewOpener(fd, opts.walk)
	if err != nil {
		return nil, err
	}
	if err := checkEmpty(fd); err != nil {
		return nil, err
	}
	opts.UserXattr = opts.UserXattr || opts.Unprivileged || opts.Confined
	x := &extractor{
		opts:   opts,
		limits: opts.Limits.withDefaults(),
		prefix: beneath.OverlayPrefix(opts.UserXattr),
		dirs:   dirCache{open: opener},
		uid:    uint32(os.Geteuid()),
		gid:    uint32(os.Getegid()),
		buf:    make([]byte, bufferSize),
		hash:   xxh3.New(),
	}
	x.small.fill, x.dirs.spare = x.fillSmall, x.small.await
	if d := max(opts.Descriptors, 5); opts.Descriptors > 0 && d < enoughDescriptors {
		// One is for a large file, and a caller may hold two directories.
		x.dirs.few = min(max(d/2, recent), len(x.dirs.slots))
		x.small.few = max(d-x.dirs.few-1, 1)
	}
	x.root = &node{ino: x.implied(), implied: true}
	// Nothing may be inherited: no group from a setgid directory, no default ACL.
	root := beneath.Inode{FD: fd}
	var st unix.Stat_t
	if err := root.Stat(&st); err != nil {
		return nil, err
	}
	if st.Uid != x.uid || st.Gid != x.gid {
		if err := root.Chown(x.uid, x.gid); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{entry.ACLDefault, entry.ACLAccess} {
		if err := root.RemoveXattr(name); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
			return nil, err
		}
	}
	if err := root.Chmod(0o700); err != nil {
		return nil, err
	}
	const probe = 123456789
	if err := root.SetTimes(1, probe); err != nil {
		return nil, err
	}
	if err := root.Stat(&st); err != nil {
		return nil, err
	}
	x.coarse = int64(st.Mtim.Nsec) != probe
	return x, nil
}

func checkEmpty(fd int) error {
	dup, err := beneath.OpenAt(fd, ".", beneath.DirFlags, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(dup), ".")
	defer f.Close()
	switch _, err := f.Readdirnames(1); err {
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("not empty: %w", errdefs.ErrFailedPrecondition)
	default:
		return err
	}
}

func (x *extractor) close() {
	x.small.close()
	x.dirs.purge()
	x.order.close()
}

// implied are the attributes of directories without an entry.
func (x *extractor) implied() *inode {
	ino := &inode{Type: entry.Dir, Mode: 0o755}
	if x.opts.Unprivileged {
		ino.UID, ino.GID = x.uid, x.gid
	}
	return ino
}

// entry applies one entry of the tar.
func (x *extractor) entry(ctx context.Context, hdr *tar.Header, body io.Reader, src *stream.Source) error {
	x.seq++
	x.order.next()
	if err := x.charge(hdr.Name, len(hdr.Linkname)); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // says something about all entries, and nothing that belongs into a layer
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
	if entry.BelowAUFS(parent) {
		return nil
	}
	if strings.HasPrefix(base, entry.WhiteoutPrefix) {
		return x.whiteout(hdr.Name, parent, base)
	}
	ino, err := x.inode(hdr)
	if err != nil {
		return err
	}
	dir, followed, err := x.parent(hdr.Name, parent)
	if err != nil {
		return err
	}
	if followed {
		x.order.odd = true
		x.say(name)
	}
	switch ino.Type {
	case entry.Dir:
		err = x.directory(hdr.Name, dir, base, ino)
	case entry.Link:
		err = x.link(hdr.Name, dir, base, ino)
	case entry.File:
		err = x.file(ctx, hdr, dir, base, ino, body, src)
	default:
		err = x.special(hdr.Name, dir, base, ino)
	}
	if err == nil {
		x.note(dir.children[base], ino)
	}
	return err
}

// charge counts an entry or implied directory, and the bytes that are kept in memory for it.
func (x *extractor) charge(name string, bytes int) error {
	if x.count++; x.count > x.limits.Entries {
		return invalid(name, "more than %d entries", x.limits.Entries)
	}
	x.memory += entryMemory
	return x.keep(name, bytes)
}

// What one entry takes in memory: a node, an inode, a place in its directory's map, and the allocations of its strings.
// A map of attributes is as much once more.
const (
	entryMemory  = 240
	xattrsMemory = 400
)

// hold counts strings that are kept in memory.
func (x *extractor) hold(name string, bytes int) error {
	x.memory += int64(bytes)
	if x.held += int64(bytes); x.held > x.limits.Strings {
		return invalid(name, "more than %d bytes of names, link targets and xattrs", x.limits.Strings)
	}
	return nil
}

// keep counts what is listed in the end: paths with all their components.
func (x *extractor) keep(name string, bytes int) error {
	if x.metadata += int64(bytes); x.metadata > x.limits.Metadata {
		return invalid(name, "more than %d bytes of paths, link targets and xattrs", x.limits.Metadata)
	}
	return nil
}

// rootEntry gives the root directory its attributes. It cannot become anything else, so that other entries for it are
// skipped.
func (x *extractor) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return nil
	}
	ino, err := x.inode(hdr)
	if err != nil {
		return err
	}
	x.root.ino, x.root.implied, x.root.seq, x.rooted = ino, false, x.seq, true
	return nil
}

func (x *extractor) directory(name string, dir *node, base string, ino *inode) error {
	if old := dir.children[base]; old != nil && old.isDir() {
		x.order.odd = x.order.odd || old.implied
		if *x.order.at(int(old.seq) - 1) == old { // an entry described it, and did not only imply it
			x.keepHeader(old.seq, old.ino)
		}
		old.ino, old.implied, old.bare, old.seq = ino, false, false, x.seq
		return nil
	}
	_, err := x.mkdir(name, dir, base, ino)
	return err
}

// special makes symlinks, fifos and devices.
func (x *extractor) special(name string, dir *node, base string, ino *inode) error {
	if _, err := x.clear(name, dir, base); err != nil {
		return err
	}
	if _, err := x.add(name, dir, base, ino); err != nil || ino.omitted {
		return err
	}
	fd, err := x.dirs.fd(dir)
	if err != nil {
		return err
	}
	switch ino.Type {
	case entry.Symlink:
		err = unix.Symlinkat(ino.Target, fd, base)
	case entry.Fifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	case entry.Char:
		err = unix.Mknodat(fd, base, unix.S_IFCHR|0o600, int(ino.Rdev))
	case entry.Block:
		err = unix.Mknodat(fd, base, unix.S_IFBLK|0o600, int(ino.Rdev))
	}
	if err != nil {
		return ioError(name, "create "+ino.Type.String(), err)
	}
	return x.apply(name, beneath.At(fd, base), ino, 0o600)
}

// apply sets the attributes of a new inode, made with mode, and corrects in ino what the filesystem made of them.
func (x *extractor) apply(name string, t beneath.Inode, ino *inode, mode uint32) error {
	e := ino.entry()
	if err := t.Apply(&e, x.uid, x.gid, mode); err != nil {
		return attrError(name, err)
	}
	x.dropped.note(ino, &e)
	return x.settle(name, t, ino)
}

// settle reads back what filesystems are known to change: times out of their range or finer than their grain, ACLs, which
// share bits with the mode, and capabilities of revision 3, which are shown as revision 2 to the root that they are bound to.
func (x *extractor) settle(name string, t beneath.Inode, ino *inode) error {
	_, access := ino.Xattrs[entry.ACLAccess]
	_, dflt := ino.Xattrs[entry.ACLDefault]
	_, caps := capabilityRoot(ino.Xattrs[capabilityAttr])
	times := x.coarse && ino.Nsec != 0 || ino.Sec < 0 || ino.Sec >= 1<<31
	if !times && !access && !dflt && !caps {
		return nil
	}
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return ioError(name, "stat", err)
	}
	ino.Sec, ino.Nsec = int64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	if access || dflt || caps {
		ino.Mode = st.Mode & 0o7777
		var err error
		if ino.Xattrs, err = t.Xattrs(ino.Type); err != nil {
			return ioError(name, "xattrs", err)
		}
	}
	return nil
}

// ioError is about the machine, not about the layer.
func ioError(name, op string, err error) error {
	return fmt.Errorf("tar entry %q: %s: %w", printable.Clip(name), op, err)
}

func attrError(name string, err error) error {
	if beneath.IsMalformedXattr(err) {
		return invalid(name, "%v", err)
	}
	return fmt.Errorf("tar entry %q: %w", printable.Clip(name), err)
}

// readFull is io.ReadFull for content that the header promised.
func readFull(r io.Reader, buf []byte) error {
	_, err := io.ReadFull(r, buf)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
