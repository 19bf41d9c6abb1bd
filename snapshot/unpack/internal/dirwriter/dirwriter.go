// Package dirwriter writes a layer as one directory, in the form of overlay's upper directories.
//
// On disk it owns only the directory that it is given, by descriptor, and a second one for files set aside, until
// Close.
//
// Its invariant: nothing outside that directory is created, changed, opened or read. Every path was resolved by package
// tarlayer before, and the kernel is told to refuse any symlink in it.
//
// The surprising rule: a small file is created when its entry is read, but filled later and by another goroutine. Only
// after Await may an inode be read.
package dirwriter

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// Options say how the directory is written.
type Options struct {
	// UserXattr writes overlay's own attributes as user.overlay.*, for mounts with the option userxattr. false:
	// trusted.overlay.*.
	UserXattr bool
	// Aside opens an empty directory on the same file system, for files that an entry removes although they may have
	// other paths above some parent. It is called at most once, when the first such file comes up, and the Writer
	// closes the directory. nil: such files are removed.
	Aside func() (*os.File, error)
	// Descriptors is how many the Writer may have open at once, beside the directory and the stream. 0, and at most:
	// 200, more of which make nothing faster; at least: 5.
	Descriptors int
	// WithoutOpenat2 opens directories component by component, as if the kernel had no openat2. false: openat2 is
	// used if the kernel has it.
	WithoutOpenat2 bool
}

const bufferSize = 256 << 10

// Writer writes one layer into one directory. It is a tarlayer.Writer, and only for one goroutine.
type Writer struct {
	opts Options
	dirs dirCache
	// uid and gid are the ids of this process, which new inodes get without a chown.
	uid, gid uint32
	// coarse: the file system does not keep every nanosecond, so that times have to be read back.
	coarse  bool
	prefix  string // of overlay's own attributes
	plain   bool   // some marks are not overlay's
	dropped droppedXattrs
	small   gatherer
	buf     []byte   // for large files
	aside   *os.File // nil until a file is set aside
}

var _ tarlayer.Writer = (*Writer)(nil)

// New takes over the empty directory fd, which stays open until Close. Its attributes are set at the end, as those of
// every other directory. A directory that is not empty is an error of class errdefs.ErrFailedPrecondition.
func New(fd int, opts Options) (*Writer, error) {
	opener, err := beneath.NewOpener(fd, opts.WithoutOpenat2)
	if err != nil {
		return nil, err
	}
	if err := checkEmpty(fd); err != nil {
		return nil, err
	}
	w := &Writer{
		opts:   opts,
		dirs:   dirCache{open: opener},
		uid:    uint32(os.Geteuid()),
		gid:    uint32(os.Getegid()),
		prefix: beneath.OverlayPrefix(opts.UserXattr),
		buf:    make([]byte, bufferSize),
	}
	w.small.fill, w.dirs.spare = w.fillSmall, w.small.await
	if d := max(opts.Descriptors, 5); opts.Descriptors > 0 && d < enoughDescriptors {
		// One is for a large file, and a method may use two directories at once.
		w.dirs.limit = min(max(d/2, recent), len(w.dirs.slots))
		w.small.limit = max(d-w.dirs.limit-1, 1)
	}
	return w, w.prepareRoot(beneath.Inode{FD: fd})
}

// prepareRoot removes what new inodes would inherit from the directory: the group of a setgid directory, and default
// ACLs. It also finds out whether the file system keeps nanoseconds.
func (w *Writer) prepareRoot(root beneath.Inode) error {
	var st unix.Stat_t
	if err := root.Stat(&st); err != nil {
		return err
	}
	if st.Uid != w.uid || st.Gid != w.gid {
		if err := root.Chown(w.uid, w.gid); err != nil {
			return err
		}
	}
	for _, name := range []string{entry.ACLDefault, entry.ACLAccess} {
		if err := root.RemoveXattr(name); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
			return err
		}
	}
	if err := root.Chmod(0o700); err != nil {
		return err
	}
	const probe = 123456789
	if err := root.SetTimes(1, probe); err != nil {
		return err
	}
	if err := root.Stat(&st); err != nil {
		return err
	}
	w.coarse = int64(st.Mtim.Nsec) != probe
	return nil
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

// Close waits for the goroutines and closes all descriptors but that of the directory.
func (w *Writer) Close() {
	w.small.close()
	w.dirs.purge()
	if w.aside != nil {
		w.aside.Close()
	}
}

// Plain reports whether some whiteouts or opaque marks are not overlay's, because the file system refused those.
// Overlay must not show such a directory.
func (w *Writer) Plain() bool { return w.plain }

// Dropped returns the names, sorted, of extended attributes that were left out because the file system does not have
// them.
func (w *Writer) Dropped() []string { return w.dropped.sorted() }

// LacksXattr reports whether an attribute of this name was left out before.
func (w *Writer) LacksXattr(name string) bool { return w.dropped.has(name) }

// Mkdir makes an empty directory.
func (w *Writer) Mkdir(n *tarlayer.Node) error {
	fd, err := w.dirs.fd(n.Parent())
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(fd, n.Name(), 0o700); err != nil {
		return fmt.Errorf("mkdir: %w", err)
	}
	if w.uid != 0 { // a umask may have taken rights from the owner
		if err := beneath.At(fd, n.Name()).Chmod(0o700); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	return nil
}

// Special makes a symlink, fifo or device.
func (w *Writer) Special(n *tarlayer.Node) error {
	fd, err := w.dirs.fd(n.Parent())
	if err != nil {
		return err
	}
	ino := n.Inode
	switch ino.Type {
	case entry.Symlink:
		err = unix.Symlinkat(ino.Target, fd, n.Name())
	case entry.Fifo:
		err = unix.Mknodat(fd, n.Name(), unix.S_IFIFO|0o600, 0)
	case entry.Char:
		err = unix.Mknodat(fd, n.Name(), unix.S_IFCHR|0o600, int(ino.Rdev))
	case entry.Block:
		err = unix.Mknodat(fd, n.Name(), unix.S_IFBLK|0o600, int(ino.Rdev))
	}
	if err != nil {
		return fmt.Errorf("create %v: %w", ino.Type, err)
	}
	return w.apply(beneath.At(fd, n.Name()), ino, 0o600)
}

// Link makes a hard link.
func (w *Writer) Link(old, n *tarlayer.Node) error {
	from, err := w.dirs.fd(old.Parent())
	if err != nil {
		return err
	}
	to, err := w.dirs.fd(n.Parent())
	if err != nil {
		return err
	}
	if err := unix.Linkat(from, old.Name(), to, n.Name(), 0); err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	return nil
}

// Remove removes a file, or a directory with all below it.
func (w *Writer) Remove(ctx context.Context, n *tarlayer.Node) error {
	fd, err := w.dirs.fd(n.Parent())
	if err != nil {
		return err
	}
	if n.IsDir() {
		w.dirs.purge()
		if fd, err = w.dirs.fd(n.Parent()); err == nil {
			err = beneath.RemoveAllAt(ctx.Err, fd, n.Name(), nil)
		}
	} else {
		err = unix.Unlinkat(fd, n.Name(), 0)
	}
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}

// SetAside moves a file to the directory of Options.Aside.
func (w *Writer) SetAside(n *tarlayer.Node, name string) (bool, error) {
	if w.opts.Aside == nil {
		return false, nil
	}
	if w.aside == nil {
		dir, err := w.opts.Aside()
		if err != nil {
			return false, fmt.Errorf("files set aside: %w", err)
		}
		w.aside = dir
	}
	from, err := w.dirs.fd(n.Parent())
	if err != nil {
		return false, err
	}
	if err := unix.Renameat(from, n.Name(), int(w.aside.Fd()), name); err != nil {
		return false, fmt.Errorf("set aside: %w", err)
	}
	return true, nil
}

// DropAside removes a file that was set aside.
func (w *Writer) DropAside(name string) error {
	if err := unix.Unlinkat(int(w.aside.Fd()), name, 0); err != nil {
		return fmt.Errorf("layer: files set aside: %w", err)
	}
	return nil
}

// Await returns when the small files, or at least the one with this inode, are filled.
func (w *Writer) Await(ino *tarlayer.Inode) error {
	if ino != nil {
		return w.small.awaitOne(ino)
	}
	return w.small.await()
}

// FinishDir writes the whiteouts and overlay's marks of a directory, and then its attributes.
func (w *Writer) FinishDir(ctx context.Context, n *tarlayer.Node) error {
	fd, err := w.dirs.fd(n)
	if err != nil {
		return err
	}
	m := beneath.Marks{Opaque: n.Opaque()}
	for name := range n.Whiteouts() {
		if err := ctx.Err(); err != nil {
			return err
		}
		plain, err := beneath.MakeWhiteoutAt(fd, name)
		if err != nil {
			return fmt.Errorf("whiteout of %q: %w", printable.Clip(name), err)
		}
		m.Whiteouts = m.Whiteouts || !plain
		w.plain = w.plain || plain
	}
	plain, err := beneath.MarkAt(fd, m, w.prefix)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	w.plain = w.plain || plain
	return w.apply(beneath.Inode{FD: fd}, n.Inode, 0o700)
}
