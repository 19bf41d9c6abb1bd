package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
)

const readSize = 256 << 10 // bytes that one read of a file asks for

// InodeID identifies an inode with several names. It is zero for a directory and for an inode with one name.
type InodeID struct{ dev, ino uint64 }

// Walk calls visit for every path of a layer's directory, in the order of entry.ComparePaths, and hashes contents.
// The entries are the same that unpack.Extract listed for the directory, except for Inode and for facts that are not
// on disk: Implied, Seq, and entries of type Link. id is the same for all names of an inode.
//
// Walk follows no symlinks and opens only directories and regular files. If the process is not root, Walk makes files
// and directories of its user readable, and restores their modes. It keeps in memory the names in the directories
// from the root to the current one, and no entries. It returns the first error of visit, errors of system calls with
// the path, and the error of ctx.
func Walk(ctx context.Context, dir *os.File, visit func(e *entry.Entry, id InodeID) error) error {
	defer runtime.KeepAlive(dir)
	r := &treeReader{
		at:    beneath.Climber{FD: int(dir.Fd())},
		buf:   make([]byte, readSize),
		hash:  xxh3.New(),
		visit: visit,
	}
	defer r.close()
	if err := r.readAll(ctx); err != nil {
		return fmt.Errorf("directory %q: %w", dir.Name(), err)
	}
	return nil
}

// ReadDir returns the entries for which Walk calls visit, and sets their Inode. All of them are in memory.
func ReadDir(dir *os.File) ([]entry.Entry, error) {
	var entries []entry.Entry
	links := map[InodeID][]int{}
	err := Walk(context.Background(), dir, func(e *entry.Entry, id InodeID) error {
		if id != (InodeID{}) {
			links[id] = append(links[id], len(entries))
		}
		entries = append(entries, *e)
		return nil
	})
	for _, group := range links {
		if len(group) < 2 {
			continue // its other names are outside the directory
		}
		for _, i := range group {
			entries[i].Inode = entries[group[0]].Path
		}
	}
	return entries, err
}

// treeReader walks through a directory.
type treeReader struct {
	at    beneath.Climber
	path  string  // of the current directory, "" for the root
	todo  []frame // the directories from the root to the current one
	visit func(e *entry.Entry, id InodeID) error
	buf   []byte
	hash  *xxh3.Hasher
}

// frame is a directory from the root to the current one.
type frame struct {
	names []treeName // those that were not visited yet
	path  string     // of the directory above
	// opened means that the directory was made readable. It gets the mode back when the reader leaves it.
	opened bool
	mode   uint32
}

// treeName stands for a name in a directory, or for the content of the subdirectory with that name. These are two
// items, because other paths may sort between them: "a", "a-b", "a/b".
type treeName struct {
	key       string // the name, or the name and a slash for its content
	mode, uid uint32
}

// content reports whether n stands for the content of a directory.
func (n treeName) content() bool { return strings.HasSuffix(n.key, "/") }

// close restores the modes of all open directories, and closes the descriptors.
func (r *treeReader) close() {
	for len(r.todo) > 1 && r.leave() == nil {
	}
	r.restore()
	r.at.Close()
}

// readAll visits the whole tree.
func (r *treeReader) readAll(ctx context.Context) error {
	root := frame{}
	if err := r.open(&root, beneath.Inode{FD: r.at.FD}); err != nil {
		return err
	}
	r.todo = []frame{root}
	if err := r.self(ctx); err != nil {
		return err
	}
	if err := r.list(ctx); err != nil {
		return err
	}
	for {
		interrupt.Step(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		top := &r.todo[len(r.todo)-1]
		if len(top.names) == 0 {
			if len(r.todo) == 1 {
				return nil
			}
			if err := r.leave(); err != nil {
				return err
			}
			continue
		}
		if err := r.one(ctx, top); err != nil {
			return err
		}
	}
}

// one visits the next name of a directory.
func (r *treeReader) one(ctx context.Context, top *frame) error {
	n := top.names[0]
	top.names = top.names[1:]
	switch {
	case n.content():
		return r.enter(ctx, strings.TrimSuffix(n.key, "/"), false)
	case n.mode&unix.S_IFMT != unix.S_IFDIR:
		path := r.join(n.key)
		if err := r.file(ctx, path, beneath.At(r.at.FD, n.key), n); err != nil {
			return fmt.Errorf("%q: %w", printable.Clip(path), err)
		}
		return nil
	case top.names[0].key == n.key+"/":
		top.names = top.names[1:]
		return r.enter(ctx, n.key, true)
	}
	// Other names sort between the directory and its content.
	if err := r.down(n.key); err != nil {
		return err
	}
	if err := r.self(ctx); err != nil {
		return err
	}
	return r.leave()
}

// enter goes into a directory and lists it. If self is true, it visits the directory itself first.
func (r *treeReader) enter(ctx context.Context, name string, self bool) error {
	if err := r.down(name); err != nil {
		return err
	}
	if self {
		if err := r.self(ctx); err != nil {
			return err
		}
	}
	return r.list(ctx)
}

// down goes into a directory.
func (r *treeReader) down(name string) error {
	f := frame{path: r.path}
	if err := r.open(&f, beneath.At(r.at.FD, name)); err != nil {
		return fmt.Errorf("%q: %w", printable.Clip(r.join(name)), err)
	}
	if err := r.at.Down(name); err != nil {
		if f.opened {
			err = errors.Join(err, beneath.At(r.at.FD, name).Chmod(f.mode))
		}
		return fmt.Errorf("%q: %w", printable.Clip(r.join(name)), err)
	}
	r.path = r.join(name)
	r.todo = append(r.todo, f)
	return nil
}

// open makes a directory readable for its owner until the reader leaves it. It does nothing if the process is root.
func (r *treeReader) open(f *frame, t beneath.Inode) error {
	if os.Geteuid() == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return err
	}
	if f.mode = st.Mode & 0o7777; f.mode&0o500 == 0o500 || int(st.Uid) != os.Geteuid() {
		return nil
	}
	f.opened = true
	return t.Chmod(f.mode | 0o500)
}

// restore restores the mode of the current directory.
func (r *treeReader) restore() {
	if len(r.todo) == 0 {
		return
	}
	if top := &r.todo[len(r.todo)-1]; top.opened {
		top.opened = false
		_ = unix.Fchmod(r.at.FD, top.mode)
	}
}

// leave returns to the directory above.
func (r *treeReader) leave() error {
	top := r.todo[len(r.todo)-1]
	inner := r.at.FD
	if top.opened { // opening ".." needs the right to search, so the mode is restored later through a second FD
		dup, err := unix.FcntlInt(uintptr(inner), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dup)
		defer func() { _ = unix.Fchmod(dup, top.mode) }()
	}
	if _, err := r.at.Leave(); err != nil {
		return fmt.Errorf("%q: %w", printable.Clip(r.path), err)
	}
	r.path = top.path
	r.todo = r.todo[:len(r.todo)-1]
	return nil
}

// join returns the path of a name in the current directory.
func (r *treeReader) join(name string) string {
	if r.path == "" {
		return name
	}
	return r.path + "/" + name
}

// self visits the current directory itself.
func (r *treeReader) self(ctx context.Context) error {
	path := r.path
	if path == "" {
		path = "."
	}
	self := beneath.Inode{FD: r.at.FD}
	if err := r.add(ctx, path, self, self, -1); err != nil {
		return fmt.Errorf("%q: %w", printable.Clip(path), err)
	}
	return nil
}

// list reads the names in the current directory.
func (r *treeReader) list(ctx context.Context) error {
	fd, err := beneath.OpenAt(r.at.FD, ".", beneath.DirFlags, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), r.path)
	defer f.Close()
	var list []treeName
	for err == nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var names []string
		names, err = f.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if err := beneath.At(r.at.FD, name).Stat(&st); err != nil {
				return fmt.Errorf("%q: %w", printable.Clip(r.join(name)), err)
			}
			if name == entry.OpaqueMarker && beneath.IsWhiteout(&st) {
				continue // the marker makes the directory opaque, and is not an entry
			}
			list = append(list, treeName{name, st.Mode, st.Uid})
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				list = append(list, treeName{name + "/", st.Mode, st.Uid})
			}
		}
	}
	if err != io.EOF {
		return err
	}
	slices.SortFunc(list, func(a, b treeName) int { return strings.Compare(a.key, b.key) })
	r.todo[len(r.todo)-1].names = list
	return nil
}

// file visits a path that is not a directory.
func (r *treeReader) file(ctx context.Context, path string, t beneath.Inode, n treeName) (err error) {
	if n.mode&unix.S_IFMT != unix.S_IFREG {
		return r.add(ctx, path, t, t, -1)
	}
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	mode := n.mode & 0o7777
	given := -1
	fd, err := beneath.OpenAt(t.FD, t.Name, flags, 0)
	if err == unix.EACCES && int(n.uid) == os.Geteuid() {
		if err := t.Chmod(mode | 0o400); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.Chmod(mode)) }()
		given = int(mode)
		fd, err = beneath.OpenAt(t.FD, t.Name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return r.add(ctx, path, beneath.Inode{FD: fd}, t, given)
}

// add visits the entry of the inode t. named is the same inode by name. mode is the original mode if the mode was
// changed for reading, otherwise -1.
func (r *treeReader) add(ctx context.Context, path string, t, named beneath.Inode, mode int) error {
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return err
	}
	e, err := beneath.EntryOf(path, &st)
	if err != nil {
		return err
	}
	if e.Type == entry.Whiteout {
		return r.visit(&e, InodeID{})
	}
	if top := &r.todo[len(r.todo)-1]; e.Type == entry.Dir && top.opened {
		e.Mode = top.mode
	}
	if mode >= 0 {
		e.Mode = uint32(mode)
	}
	var id InodeID
	if e.Type != entry.Dir && st.Nlink > 1 {
		id = InodeID{uint64(st.Dev), st.Ino}
	}
	if err := r.details(ctx, &e, t, named); err != nil {
		return err
	}
	return r.visit(&e, id)
}

// details sets the fields of an entry that are not in the status of its inode. See add for named.
func (r *treeReader) details(ctx context.Context, e *entry.Entry, t, named beneath.Inode) (err error) {
	if e.Xattrs, err = t.Xattrs(e.Type); err != nil {
		return err
	}
	switch e.Type {
	case entry.Dir:
		e.Opaque, err = t.IsOpaque()
	case entry.File:
		e.Hash, err = r.content(ctx, t.FD, e.Size)
	case entry.Symlink:
		e.Target, err = named.Readlink()
	}
	return err
}

// content returns the hash of a file.
func (r *treeReader) content(ctx context.Context, fd int, size int64) ([16]byte, error) {
	if sparse.HasHoles(fd, size) {
		return sparse.Sum128(ctx, fd, size)
	}
	r.hash.Reset()
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return [16]byte{}, err
		}
		var n int
		err := beneath.IgnoringEINTR(func() (err error) {
			n, err = unix.Read(fd, r.buf)
			return err
		})
		if err != nil {
			return [16]byte{}, err
		}
		if n == 0 {
			break
		}
		r.hash.Write(r.buf[:n])
		total += int64(n)
	}
	if total != size {
		return [16]byte{}, fmt.Errorf("%d bytes read of %d: %w", total, size, io.ErrUnexpectedEOF)
	}
	return r.hash.Sum128().Bytes(), nil
}
