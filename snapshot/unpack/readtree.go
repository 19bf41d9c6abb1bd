package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/sparse"
)

// ReadTree lists a layer's directory as entries, contents hashed: the same that Extract returned for it, without what is
// not on disk (Implied, Seq, and entries of type Link). It follows no symlink and opens nothing but directories and regular
// files. As an ordinary user it opens up what its owner cannot read and closes it again. Errors are those of the system
// calls, with the path.
func ReadTree(dir *os.File) ([]Entry, error) {
	defer runtime.KeepAlive(dir)
	r := &treeReader{
		at:    climber{fd: int(dir.Fd())},
		buf:   make([]byte, bufferSize),
		hash:  xxh3.New(),
		links: make(map[[2]uint64][]int),
	}
	defer r.close()
	if err := r.readAll(); err != nil {
		return nil, fmt.Errorf("directory %q: %w", dir.Name(), err)
	}
	return r.sorted(), nil
}

// treeReader walks a tree and gathers its entries.
type treeReader struct {
	at      climber
	path    string // of the current directory, "" for the root
	todo    []frame
	entries []Entry
	links   map[[2]uint64][]int // entries by device and inode, where there are several names
	buf     []byte
	hash    *xxh3.Hasher
}

// frame is a directory that the reader is in.
type frame struct {
	subdirs []string
	path    string // of the directory above
	// opened up: the mode to give back when the reader leaves
	opened bool
	mode   uint32
}

func (r *treeReader) close() {
	for len(r.todo) > 1 && r.leave() == nil {
	}
	r.restore()
	r.at.close()
}

func (r *treeReader) readAll() error {
	root := frame{}
	if err := r.open(&root, target{fd: r.at.fd}); err != nil {
		return err
	}
	r.todo = []frame{root}
	if err := r.list(); err != nil {
		return err
	}
	for {
		top := &r.todo[len(r.todo)-1]
		if len(top.subdirs) == 0 {
			if len(r.todo) == 1 {
				return nil
			}
			if err := r.leave(); err != nil {
				return err
			}
			continue
		}
		name := top.subdirs[0]
		top.subdirs = top.subdirs[1:]
		if err := r.enter(name); err != nil {
			return err
		}
	}
}

// enter goes into a directory and lists it.
func (r *treeReader) enter(name string) error {
	f := frame{path: r.path}
	if err := r.open(&f, target{r.at.fd, name}); err != nil {
		return fmt.Errorf("%q: %w", clip(r.join(name)), err)
	}
	if err := r.at.down(name); err != nil {
		if f.opened {
			err = errors.Join(err, target{r.at.fd, name}.chmod(f.mode))
		}
		return fmt.Errorf("%q: %w", clip(r.join(name)), err)
	}
	r.path = r.join(name)
	r.todo = append(r.todo, f)
	return r.list()
}

// open makes a directory of an ordinary user readable to its owner, for as long as the reader is in it.
func (r *treeReader) open(f *frame, t target) error {
	if os.Geteuid() == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := t.stat(&st); err != nil {
		return err
	}
	if f.mode = st.Mode & 0o7777; f.mode&0o500 == 0o500 || int(st.Uid) != os.Geteuid() {
		return nil
	}
	f.opened = true
	return t.chmod(f.mode | 0o500)
}

// restore gives the current directory its mode back.
func (r *treeReader) restore() {
	if len(r.todo) == 0 {
		return
	}
	if top := &r.todo[len(r.todo)-1]; top.opened {
		top.opened = false
		_ = unix.Fchmod(r.at.fd, top.mode)
	}
}

// leave goes back to the directory above.
func (r *treeReader) leave() error {
	top := r.todo[len(r.todo)-1]
	inner := r.at.fd
	if top.opened { // ".." wants the right to search, so that the mode comes back through a second descriptor
		dup, err := unix.FcntlInt(uintptr(inner), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dup)
		defer func() { _ = unix.Fchmod(dup, top.mode) }()
	}
	if _, err := r.at.leave(); err != nil {
		return fmt.Errorf("%q: %w", clip(r.path), err)
	}
	r.path = top.path
	r.todo = r.todo[:len(r.todo)-1]
	return nil
}

func (r *treeReader) join(name string) string {
	if r.path == "" {
		return name
	}
	return r.path + "/" + name
}

// list adds the current directory itself and what is in it, its directories excepted: they come when they are entered.
func (r *treeReader) list() error {
	path := r.path
	if path == "" {
		path = "."
	}
	self := target{fd: r.at.fd}
	if err := r.add(path, self, self); err != nil {
		return fmt.Errorf("%q: %w", clip(path), err)
	}
	fd, err := openat(r.at.fd, ".", dirFlags, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	top := &r.todo[len(r.todo)-1]
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			t := target{r.at.fd, name}
			var st unix.Stat_t
			if err := t.stat(&st); err != nil {
				return fmt.Errorf("%q: %w", clip(r.join(name)), err)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				top.subdirs = append(top.subdirs, name)
			} else if err := r.file(r.join(name), t, &st); err != nil {
				return fmt.Errorf("%q: %w", clip(r.join(name)), err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// file adds what is not a directory.
func (r *treeReader) file(path string, t target, st *unix.Stat_t) (err error) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return r.add(path, t, t)
	}
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	var fd int
	fd, err = openat(t.fd, t.name, flags, 0)
	if err == unix.EACCES && int(st.Uid) == os.Geteuid() {
		mode := st.Mode & 0o7777
		if err := t.chmod(mode | 0o400); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				r.entries[len(r.entries)-1].Mode = mode
			}
			err = errors.Join(err, t.chmod(mode))
		}()
		fd, err = openat(t.fd, t.name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return r.add(path, target{fd: fd}, t)
}

// add adds the entry of t; named is the same inode by name.
func (r *treeReader) add(path string, t, named target) error {
	var st unix.Stat_t
	if err := t.stat(&st); err != nil {
		return err
	}
	e, err := statEntry(path, &st)
	if err != nil {
		return err
	}
	if e.Type == Whiteout {
		r.entries = append(r.entries, e)
		return nil
	}
	if e.Type == Dir && len(r.todo) > 0 && r.todo[len(r.todo)-1].opened {
		e.Mode = r.todo[len(r.todo)-1].mode
	}
	if e.Type != Dir && st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		r.links[key] = append(r.links[key], len(r.entries))
	}
	err = r.details(&e, t, named)
	r.entries = append(r.entries, e)
	return err
}

// details are what a status does not tell.
func (r *treeReader) details(e *Entry, t, named target) (err error) {
	if e.Xattrs, err = t.xattrs(e.Type); err != nil {
		return err
	}
	switch e.Type {
	case Dir:
		e.Opaque, err = t.opaque()
	case File:
		e.Hash, err = r.content(t.fd, e.Size)
	case Symlink:
		e.Target, err = readlink(named)
	}
	return err
}

func readlink(t target) (string, error) {
	for buf := make([]byte, 256); ; buf = make([]byte, 4*len(buf)) {
		n, err := unix.Readlinkat(t.fd, t.name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}

// content hashes a file.
func (r *treeReader) content(fd int, size int64) ([16]byte, error) {
	if sparse.HasHoles(fd, size) {
		return sparse.Sum128(context.Background(), fd, size)
	}
	r.hash.Reset()
	var total int64
	for {
		var n int
		err := ignoringEINTR(func() (err error) {
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

// sorted names the groups of hard links and sorts the entries.
func (r *treeReader) sorted() []Entry {
	for _, group := range r.links {
		if len(group) < 2 {
			continue // its other names lie elsewhere
		}
		first := r.entries[group[0]].Path
		for _, i := range group {
			first = min(first, r.entries[i].Path)
		}
		for _, i := range group {
			r.entries[i].Inode = first
		}
	}
	slices.SortFunc(r.entries, func(a, b Entry) int { return ComparePaths(a.Path, b.Path) })
	return r.entries
}
