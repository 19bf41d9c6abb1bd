// Package damagetest damages a root as a disk, a careless administrator or another program might, for tests.
//
// It owns nothing on disk, and changes what it is told to.
//
// Its invariant: the same seed chooses the same damage in the same root. The surprising rule: whatever it changes, it
// leaves the times and the size of a file as they were if the kind of damage allows that, so that only a comparison of
// the content finds it.
package damagetest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Target is something in a root that has a digest or a seal.
type Target struct {
	Node metadata.Node
	Path string // the file of a blob, the root directory of a layer or rootfs
	Seal string // the file; "" for a blob
	Aux  string // of an ordered layer: the directory that has order and aside in it; "" for others
}

// Name says what kind of target it is: blob, layer, ordered layer, fix-up or rootfs.
func (t Target) Name() string {
	switch {
	case t.Node.Kind != metadata.KindLayer:
		return string(t.Node.Kind)
	case layer.IsFixup(t.Node.Key):
		return "fix-up"
	case t.Aux != "":
		return "ordered layer"
	}
	return "layer"
}

// Targets returns the targets that some records of an open root stand for. A snapshot is none.
func Targets(t *tank.Tank, nodes []metadata.Node) ([]Target, error) {
	layers := t.Snapshots().Layers()
	var all []Target
	for _, n := range nodes {
		d := digest.Digest(n.Key)
		switch n.Kind {
		case metadata.KindBlob:
			all = append(all, Target{Node: n, Path: t.Content().Path(d)})
		case metadata.KindLayer:
			rec, err := layers.Record(n.Key)
			if err != nil {
				return nil, err
			}
			dir := filepath.Dir(layers.Lower(rec).Path)
			target := Target{Node: n, Path: filepath.Join(dir, "fs"), Seal: filepath.Join(dir, "seal")}
			if rec.Ordered {
				target.Aux = dir
			}
			all = append(all, target)
		case metadata.KindRootfs:
			dir := filepath.Join(t.Root(), "rootfs", d.Algorithm().String(), d.Encoded())
			all = append(all, Target{Node: n, Path: dir, Seal: dir + ".seal"})
		}
	}
	return all, nil
}

// errNone means that a target has nothing that a kind of damage could change.
var errNone = errors.New("nothing to damage")

// Kind is a kind of damage.
type Kind struct {
	Name string
	of   func(Target) bool
	do   func(r *rand.Rand, t Target) (path string, err error)
}

func blob(t Target) bool    { return t.Node.Kind == metadata.KindBlob }
func sealed(t Target) bool  { return t.Seal != "" }
func ordered(t Target) bool { return t.Aux != "" }

// Kinds are all kinds of damage.
var Kinds = []Kind{
	{"a bit of the blob flipped", blob, func(r *rand.Rand, t Target) (string, error) {
		return t.Path, flip(r, t.Path)
	}},
	{"the blob truncated", blob, func(r *rand.Rand, t Target) (string, error) { return t.Path, truncate(r, t.Path) }},
	{"the blob extended", blob, func(_ *rand.Rand, t Target) (string, error) { return t.Path, extend(t.Path) }},
	{"the blob removed", blob, func(_ *rand.Rand, t Target) (string, error) { return t.Path, os.Remove(t.Path) }},
	{"the blob replaced", blob, func(r *rand.Rand, t Target) (string, error) { return t.Path, replace(r, t.Path) }},
	{"a directory instead of the blob", blob, func(_ *rand.Rand, t Target) (string, error) {
		return t.Path, errors.Join(os.Remove(t.Path), os.Mkdir(t.Path, 0o700))
	}},

	{"a bit of a file flipped", sealed, onFile(flip)},
	{"a file truncated", sealed, onFile(truncate)},
	{"a file extended", sealed, onFile(func(_ *rand.Rand, path string) error { return extend(path) })},
	{"a file removed", sealed, onFile(func(_ *rand.Rand, path string) error { return os.Remove(path) })},
	{"a file replaced", sealed, onFile(replace)},
	{"a mode changed", sealed, onAny(func(r *rand.Rand, path string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return errNone
		}
		return unix.Chmod(path, (st.Mode&0o7777)^(1<<r.IntN(9)))
	})},
	{"an owner changed", sealed, onAny(func(r *rand.Rand, path string, st *unix.Stat_t) error {
		if os.Geteuid() != 0 {
			return errNone
		}
		uid, gid := int(st.Uid), int(st.Gid)
		if r.IntN(2) == 0 {
			uid++
		} else {
			gid++
		}
		return errors.Join(os.Lchown(path, uid, gid), keepMode(path, st))
	})},
	{"an extended attribute added", sealed, onAny(func(_ *rand.Rand, path string, st *unix.Stat_t) error {
		if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
			return errNone
		}
		return unix.Lsetxattr(path, "user.damage", []byte("x"), 0)
	})},
	{"a modification time changed", sealed, onAny(func(r *rand.Rand, path string, st *unix.Stat_t) error {
		ts := []unix.Timespec{st.Atim, {Sec: st.Mtim.Sec + 1 + r.Int64N(1000), Nsec: st.Mtim.Nsec}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
	})},
	{"a file added", sealed, onDir(func(r *rand.Rand, dir string) error {
		return os.WriteFile(filepath.Join(dir, fmt.Sprintf("damage-%x", r.Uint32())), []byte("x"), 0o600)
	})},
	{"a directory removed", sealed, onDir(func(_ *rand.Rand, dir string) error {
		return os.RemoveAll(dir)
	})},
	{"a symlink instead of a file", sealed, onFile(func(_ *rand.Rand, path string) error {
		return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path))
	})},
	{"a bit of the seal flipped", sealed, func(r *rand.Rand, t Target) (string, error) {
		return t.Seal, flip(r, t.Seal)
	}},
	{"the seal truncated", sealed, func(r *rand.Rand, t Target) (string, error) {
		return t.Seal, truncate(r, t.Seal)
	}},
	{"the seal removed", sealed, func(_ *rand.Rand, t Target) (string, error) { return t.Seal, os.Remove(t.Seal) }},

	{"a bit of the order flipped", ordered, onAux("order", flip)},
	{"the order truncated", ordered, onAux("order", truncate)},
	{"the order removed", ordered, onAux("order", func(_ *rand.Rand, path string) error { return os.Remove(path) })},
	{"the files set aside removed", ordered, onAux("aside", func(_ *rand.Rand, path string) error {
		return os.RemoveAll(path)
	})},
	{"a bit of a file set aside flipped", ordered, func(r *rand.Rand, t Target) (string, error) {
		return onFile(flip)(r, Target{Path: filepath.Join(t.Aux, "aside")})
	}},
}

// Inflict damages a target in a random way, and returns what it did and to which file.
func Inflict(r *rand.Rand, t Target) (kind Kind, path string, err error) {
	kinds := slices.DeleteFunc(slices.Clone(Kinds), func(k Kind) bool { return !k.of(t) })
	for _, i := range r.Perm(len(kinds)) {
		if path, err = kinds[i].do(r, t); !errors.Is(err, errNone) {
			return kinds[i], path, err
		}
	}
	return Kind{}, "", err
}

// Apply damages a target in this way. It reports false if the target has nothing of that kind.
func (k Kind) Apply(r *rand.Rand, t Target) (path string, ok bool, err error) {
	if !k.of(t) {
		return "", false, nil
	}
	path, err = k.do(r, t)
	if errors.Is(err, errNone) {
		return "", false, nil
	}
	return path, true, err
}

func onAux(name string, do func(*rand.Rand, string) error) func(*rand.Rand, Target) (string, error) {
	return func(r *rand.Rand, t Target) (string, error) {
		path := filepath.Join(t.Aux, name)
		if _, err := os.Lstat(path); err != nil {
			return "", errNone
		}
		return path, do(r, path)
	}
}

// pick chooses a path below a directory for which want returns true.
func pick(r *rand.Rand, dir string, want func(path string, st *unix.Stat_t) bool) (
	path string, st unix.Stat_t, err error,
) {
	var paths []string
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // earlier damage has removed it
			return nil
		}
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil && want(path, &st) {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return "", st, err
	}
	if len(paths) == 0 {
		return "", st, errNone
	}
	path = paths[r.IntN(len(paths))]
	return path, st, unix.Lstat(path, &st)
}

func onFile(do func(*rand.Rand, string) error) func(*rand.Rand, Target) (string, error) {
	return func(r *rand.Rand, t Target) (string, error) {
		path, _, err := pick(r, t.Path, func(_ string, st *unix.Stat_t) bool {
			return st.Mode&unix.S_IFMT == unix.S_IFREG
		})
		if err != nil {
			return "", err
		}
		return path, do(r, path)
	}
}

func onDir(do func(*rand.Rand, string) error) func(*rand.Rand, Target) (string, error) {
	return func(r *rand.Rand, t Target) (string, error) {
		path, _, err := pick(r, t.Path, func(_ string, st *unix.Stat_t) bool {
			return st.Mode&unix.S_IFMT == unix.S_IFDIR
		})
		if err != nil {
			return "", err
		}
		return path, do(r, path)
	}
}

func onAny(do func(*rand.Rand, string, *unix.Stat_t) error) func(*rand.Rand, Target) (string, error) {
	return func(r *rand.Rand, t Target) (string, error) {
		path, st, err := pick(r, t.Path, func(_ string, st *unix.Stat_t) bool {
			return st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 // a whiteout has no attributes
		})
		if err != nil {
			return "", err
		}
		return path, do(r, path, &st)
	}
}

// keepMode gives a file the mode back that a change of owner takes away from it.
func keepMode(path string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod(path, st.Mode&0o7777)
}

// inPlace changes a file that may be read-only, and restores its times.
func inPlace(path string, do func(*os.File) error) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Size == 0 {
		return errNone
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(do(f), f.Close(), unix.Chmod(path, st.Mode&0o7777))
	return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

func flip(r *rand.Rand, path string) error {
	return inPlace(path, func(f *os.File) error {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		at, b := r.Int64N(fi.Size()), make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		b[0] ^= 1 << r.IntN(8)
		_, err = f.WriteAt(b, at)
		return err
	})
}

func truncate(r *rand.Rand, path string) error {
	return inPlace(path, func(f *os.File) error {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		return f.Truncate(r.Int64N(fi.Size()))
	})
}

func extend(path string) error {
	return inPlace(path, func(f *os.File) error {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("x"), fi.Size())
		return err
	})
}

// replace puts another file of the same size, mode, owner and times in the place of a file.
func replace(r *rand.Rand, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Size == 0 {
		return errNone
	}
	data := []byte(strings.Repeat(string(rune('A'+r.IntN(26))), int(st.Size)))
	other := path + ".other"
	if err := os.WriteFile(other, data, 0o600); err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err == nil && string(old) == string(data) {
		err = os.WriteFile(other, append([]byte("!"), data[1:]...), 0o600)
	}
	at := time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	if os.Geteuid() == 0 {
		err = errors.Join(err, os.Lchown(other, int(st.Uid), int(st.Gid)))
	}
	return errors.Join(err, unix.Chmod(other, st.Mode&0o7777), os.Chtimes(other, at, at),
		os.Rename(other, path)) //nolint:forbidigo // this is the damage
}
