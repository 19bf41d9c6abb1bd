package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// merge lays a directory in overlay's form over a plain one, as a mount of the two would show them.
type merge struct {
	root      string // the plain directory
	move      bool   // take inodes away from the source by renames, instead of copying them
	whiteouts bool   // the source may hold whiteouts and opaque directories

	into  *os.File
	links map[uint64]string // copies of inodes with several names: where the first copy is
}

func (m *merge) run(ctx context.Context, dir string) error {
	src, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer src.Close()
	if m.into, err = os.Open(m.root); err != nil {
		return err
	}
	defer m.into.Close()
	m.links = map[uint64]string{}
	if opaque, err := unpack.IsOpaque(src); err != nil {
		return err
	} else if opaque {
		if err := removeContent(m.into); err != nil {
			return err
		}
	}
	return m.dir(ctx, src, m.into, "")
}

func removeContent(dir *os.File) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := unpack.RemoveAll(dir, n); err != nil {
			return err
		}
	}
	return nil
}

// dir merges what is in src into dst. The caller sets dst's own attributes.
func (m *merge) dir(ctx context.Context, src, dst *os.File, at string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", path.Join(at, name), err)
		}
		switch {
		case unpack.IsWhiteout(&st):
			err = unpack.RemoveAll(dst, name)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			err = m.subdir(ctx, src, dst, name, path.Join(at, name))
		default:
			err = m.node(src, dst, name, path.Join(at, name), &st)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// subdir merges one directory of the source.
func (m *merge) subdir(ctx context.Context, src, dst *os.File, name, at string) error {
	e, err := unpack.ReadEntry(src, name)
	if err != nil {
		return err
	}
	var below unix.Stat_t
	err = unix.Fstatat(int(dst.Fd()), name, &below, unix.AT_SYMLINK_NOFOLLOW)
	exists := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return pathError("stat", at, err)
	}
	if exists && (e.Opaque || below.Mode&unix.S_IFMT != unix.S_IFDIR) {
		if err := unpack.RemoveAll(dst, name); err != nil {
			return err
		}
		exists = false
	}
	if !exists && m.move && !m.whiteouts {
		return m.moveDir(src, dst, name, at, e)
	}
	if !exists {
		if err := makeNode(dst, name, e, nil); err != nil {
			return err
		}
	}
	from, err := openOwn(src, name, m.move)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openOwn(dst, name, true)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := m.dir(ctx, from, to, at); err != nil {
		return err
	}
	return unpack.SetAttrsOf(to, e)
}

// moveDir moves a whole subtree. An ordinary user may move only directories that it may write, because ".." changes.
func (m *merge) moveDir(src, dst *os.File, name, at string, e *unpack.Entry) error {
	err := unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name)
	if errors.Is(err, unix.EACCES) && e.Mode&0o200 == 0 {
		if err := unix.Fchmodat(int(src.Fd()), name, e.Mode|0o700, 0); err != nil {
			return pathError("chmod", at, err)
		}
		if err = unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name); err == nil {
			return unpack.SetAttrs(dst, name, e)
		}
	}
	return pathError("move", at, err)
}

// node moves or copies what is not a directory over whatever is there.
func (m *merge) node(src, dst *os.File, name, at string, st *unix.Stat_t) error {
	if err := unpack.RemoveAll(dst, name); err != nil {
		return err
	}
	if m.move {
		return pathError("move", at, unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name))
	}
	if first, ok := m.links[st.Ino]; ok && st.Nlink > 1 {
		return linkAt(m.into, first, dst, name)
	}
	if err := copyNode(src, dst, name, at); err != nil {
		return err
	}
	if st.Nlink > 1 {
		m.links[st.Ino] = at
	}
	return nil
}

func copyNode(src, dst *os.File, name, at string) error {
	e, err := unpack.ReadEntry(src, name)
	if err != nil {
		return err
	}
	var content *os.File
	if e.Type == unpack.File {
		if content, err = openFile(src, name); err != nil {
			return err
		}
		defer content.Close()
	}
	e.Path = at
	return makeNode(dst, name, e, content)
}

// openOwn opens a directory; one that its owner, an ordinary user, can't use is opened up first if need be.
func openOwn(dir *os.File, name string, write bool) (*os.File, error) {
	if os.Geteuid() != 0 {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, pathError("stat", name, err)
		}
		need := uint32(0o500)
		if write {
			need = 0o700
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&need != need {
			if err := unix.Fchmodat(int(dir.Fd()), name, st.Mode&0o7777|0o700, 0); err != nil {
				return nil, pathError("chmod", name, err)
			}
		}
	}
	return openDir(dir, name)
}

func readNames(dir *os.File) ([]string, error) {
	d, err := openDir(dir, ".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// Clone copies the tree from into the directory to, which must be missing or empty (errdefs.ErrFailedPrecondition), and
// shares no inode with it.
func Clone(ctx context.Context, from, to string) error {
	names, err := os.ReadDir(to)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
	case err != nil:
		return err
	case len(names) > 0:
		return fmt.Errorf("directory %s: not empty: %w", to, errdefs.ErrFailedPrecondition)
	}
	m := merge{root: to}
	if err := m.run(ctx, from); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	e, err := unpack.ReadEntry(src, ".")
	if err != nil {
		return err
	}
	dst, err := os.Open(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	return unpack.SetAttrsOf(dst, e)
}
