package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/descriptors"
	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
)

// mergeWorkers is the largest number of entries that are copied at once. On a file system that clones, most of the time
// of a copy goes into the kernel's work on inodes.
const mergeWorkers = 8

// Merge merges a directory in overlay's form into a plain one. The result is what an overlay mount of the two shows.
type Merge struct {
	To     string          // the plain directory
	Live   bool            // a container may be writing to the source, although its snapshot was committed
	Move   bool            // take inodes away from the source by renames, instead of copying them
	Marked map[string]bool // the source's directories that MarkedDirs returns; only used with Move

	Lost          *nodes.LostXattrs // collects the attributes that copies lack
	Space         *diskspace.Meter  // free space for copies; nil: not checked
	SharesExtents bool              // copies of files share the content of the originals (reflinks)
	Descriptors   descriptors.Share // 0: no limit

	into    *os.File                // To
	workers chan struct{}           // has room for each goroutine beside the first; nil: there is only one
	fail    context.CancelCauseFunc // ends all workers

	mu    sync.Mutex        // guards links, and is held while an inode with several names is copied
	links map[uint64]string // path of the copy, by inode number in the source; inodes with several names only
}

// Run lays the directory dir over m.To. The attributes of m.To itself are left to the caller.
func (m *Merge) Run(ctx context.Context, dir string) error {
	source, err := nodes.OpenPath(dir, m.rights())
	if err != nil {
		return err
	}
	defer source.Close()
	src := source.File
	if m.into, err = os.Open(m.To); err != nil {
		return err
	}
	defer m.into.Close()
	m.links = map[uint64]string{}
	if !m.Move && m.Descriptors == 0 {
		m.workers = make(chan struct{}, min(runtime.GOMAXPROCS(0), mergeWorkers)-1)
	}
	ctx, m.fail = context.WithCancelCause(ctx)
	defer m.fail(nil)
	if opaque, err := beneath.IsOpaque(src); err != nil {
		return err
	} else if opaque {
		if err := removeContent(ctx, m.into); err != nil {
			return err
		}
	}
	below, err := readNames(m.into)
	if err != nil {
		return err
	}
	return m.dir(ctx, src, m.into, "", len(below) == 0)
}

// rights returns the mode bits that the owner needs on the directories of the source.
func (m *Merge) rights() uint32 {
	if m.Move {
		return 0o700
	}
	return 0o500
}

func removeContent(ctx context.Context, dir *os.File) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := beneath.RemoveAll(ctx, dir, n, nil); err != nil {
			return err
		}
	}
	return nil
}

// dir merges the content of src into dst. at is the path of both; fresh means that dst is empty. The caller sets the
// attributes of dst.
func (m *Merge) dir(ctx context.Context, src, dst *os.File, at string, fresh bool) error {
	list, err := readDir(src)
	if err != nil {
		return err
	}
	var others sync.WaitGroup
	for _, e := range list {
		if ctx.Err() != nil {
			break
		}
		name, at := e.name, inside(at, e.name)
		if m.Move && m.take(src, dst, e, at) {
			continue
		}
		one := func() {
			err := panics.Call("merge", func() error { return m.entry(ctx, src, dst, name, at, fresh) })
			if err != nil {
				m.fail(err)
			}
		}
		select {
		case m.workers <- struct{}{}:
			others.Go(func() {
				defer func() { <-m.workers }()
				one()
			})
		default:
			one()
		}
	}
	others.Wait()
	return context.Cause(ctx)
}

// entry merges the entry name of src into dst. at is the path of the entry.
func (m *Merge) entry(ctx context.Context, src, dst *os.File, name, at string, fresh bool) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nodes.PathError("stat", at, err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && !fresh {
		if err := beneath.RemoveAll(ctx, dst, name, nil); err != nil {
			return err
		}
	}
	switch {
	case beneath.IsWhiteout(&st):
		return nil
	case isDir:
		return m.subdir(ctx, src, dst, name, at, fresh)
	case m.Move:
		return nodes.PathError("move", at, unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name))
	case st.Nlink > 1:
		return m.linked(ctx, src, dst, name, at, st.Ino)
	}
	return m.copyNode(ctx, src, dst, name, at, &st)
}

// subdir merges one directory of the source.
func (m *Merge) subdir(ctx context.Context, src, dst *os.File, name, at string, fresh bool) error {
	from, err := nodes.OpenDirWith(src, name, m.rights())
	if err != nil {
		return err
	}
	defer from.Close()
	e, err := from.Entry(at)
	if err != nil {
		return err
	}
	var below unix.Stat_t
	exists := false
	if !fresh {
		err = unix.Fstatat(int(dst.Fd()), name, &below, unix.AT_SYMLINK_NOFOLLOW)
		exists = err == nil
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nodes.PathError("stat", at, err)
		}
	}
	if exists && (e.Opaque || below.Mode&unix.S_IFMT != unix.S_IFDIR) {
		if err := beneath.RemoveAll(ctx, dst, name, nil); err != nil {
			return err
		}
		exists = false
	}
	if !exists && m.Move && !m.Marked[at] {
		from.Restore()
		return m.moveDir(src, dst, name, at, e)
	}
	if !exists {
		if err := nodes.Make(ctx, dst, name, e, nil); err != nil {
			return err
		}
	}
	to, err := nodes.OpenDirWith(dst, name, 0o700)
	if err != nil {
		return err
	}
	defer to.File.Close() // not to.Close, which restores the mode: the directory gets the mode of the source's
	if err := m.dir(ctx, from.File, to.File, at, !exists); err != nil {
		return err
	}
	had := e.Xattrs
	err = beneath.SetAttrsOf(to.File, e)
	m.Lost.Note(had, e)
	return err
}

// moveDir moves a whole subtree. An ordinary user may move only directories that it may write, because ".." changes.
func (m *Merge) moveDir(src, dst *os.File, name, at string, e *entry.Entry) error {
	err := unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name)
	if errors.Is(err, unix.EACCES) && e.Mode&0o200 == 0 {
		if err := beneath.Chmod(src, name, e.Mode|0o700); err != nil {
			return nodes.PathError("chmod", at, err)
		}
		if err = unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name); err == nil {
			return beneath.SetAttrs(dst, name, e)
		}
	}
	return nodes.PathError("move", at, err)
}

// linked copies an inode at the first of its names that it gets, and makes hard links to the copy for the others.
func (m *Merge) linked(ctx context.Context, src, dst *os.File, name, at string, ino uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if first, ok := m.links[ino]; ok {
		return nodes.Link(m.into, first, dst, name)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nodes.PathError("stat", at, err)
	}
	if err := m.copyNode(ctx, src, dst, name, at, &st); err != nil {
		return err
	}
	m.links[ino] = at
	return nil
}

// fits returns an error if a copy of the inode does not fit into the free space.
func (m *Merge) fits(st *unix.Stat_t) error {
	if m.Space == nil {
		return nil
	}
	bytes := int64(4096) // an inode
	if !m.SharesExtents {
		bytes += st.Blocks * 512
	}
	return m.Space.Take(bytes)
}

// copyNode copies an inode that is not a directory.
func (m *Merge) copyNode(ctx context.Context, src, dst *os.File, name, at string, st *unix.Stat_t) error {
	if err := m.fits(st); err != nil {
		return nodes.PathError("copy", at, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		from, err := nodes.OpenFile(src, name, m.Live)
		if err != nil {
			return err
		}
		defer from.Close()
		e, err := from.Entry(at)
		if err == nil && e.Type != entry.File {
			err = nodes.PathError("read", at, nodes.ErrReplaced)
		}
		if err != nil {
			return err
		}
		return m.makeNode(ctx, dst, name, e, from.File)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return copySocket(dst, name, at, st)
	}
	e, err := beneath.ReadEntry(src, name)
	if err != nil {
		return nodes.PathError("read", at, err)
	}
	if e.Type == entry.File || e.Type == entry.Dir {
		return nodes.PathError("read", at, nodes.ErrReplaced)
	}
	e.Path = at
	return m.makeNode(ctx, dst, name, e, nil)
}

// makeNode makes a node, and notes the attributes that it lacks.
func (m *Merge) makeNode(ctx context.Context, dst *os.File, name string, e *entry.Entry, content *os.File) error {
	had := e.Xattrs
	err := nodes.Make(ctx, dst, name, e, content)
	m.Lost.Note(had, e)
	return err
}

// copySocket copies a socket that a container left behind. No process listens on the copy. No layer has a socket, so
// there is no entry.Type for it, and the attributes are set as for a fifo.
func copySocket(dst *os.File, name, at string, st *unix.Stat_t) error {
	if err := unix.Mknodat(int(dst.Fd()), name, unix.S_IFSOCK|0o600, 0); err != nil {
		return nodes.PathError("create", at, err)
	}
	return beneath.SetAttrs(dst, name, &entry.Entry{
		Path: at, Type: entry.Fifo, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: int64(st.Mtim.Sec),
		Nsec: int64(st.Mtim.Nsec),
	})
}

func readNames(dir *os.File) ([]string, error) {
	d, err := nodes.OpenDir(dir, ".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// Clone copies the tree from into the directory to. The copy shares no inode with from. Clone returns
// errdefs.ErrFailedPrecondition if to exists and is not empty.
func Clone(ctx context.Context, from, to string) error {
	existing, err := os.ReadDir(to)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
	case err != nil:
		return err
	case len(existing) > 0:
		return fmt.Errorf("directory %s: not empty: %w", to, errdefs.ErrFailedPrecondition)
	}
	m := Merge{To: to, Lost: &nodes.LostXattrs{}}
	if err := m.Run(ctx, from); err != nil {
		return err
	}
	src, err := nodes.OpenRoot(from)
	if err != nil {
		return err
	}
	defer src.Close()
	e, err := src.Entry(".")
	if err != nil {
		return err
	}
	dst, err := os.Open(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	had := e.Xattrs
	err = beneath.SetAttrsOf(dst, e)
	m.Lost.Note(had, e)
	m.Lost.Warn(ctx, "directory "+printable.Text(to))
	return err
}
