package overlay

import (
	"encoding/binary"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// MarkedDirs are the directories, other than the root, that are opaque, hold a whiteout, or have one
// that does somewhere below them. All others are in a plain tree what they are in overlay's form.
func MarkedDirs(entries tree.List) (map[string]bool, error) {
	marked := map[string]bool{}
	err := entries(func(e *entry.Entry) error {
		at := e.Path
		switch {
		case e.Opaque:
		case e.Type == entry.Whiteout:
			at = path.Dir(at)
		default:
			return nil
		}
		for ; at != "." && !marked[at]; at = path.Dir(at) {
			marked[at] = true
		}
		return nil
	})
	return marked, err
}

// take moves an entry with one rename and no look at what is in the way: a file replaces another one,
// and a directory with all below it goes where nothing is. False, for whatever reason, is that entry
// has to do it.
func (m *Merge) take(src, dst *os.File, e dirent, at string) bool {
	var flags uint
	switch e.kind {
	case unix.DT_REG, unix.DT_LNK, unix.DT_FIFO, unix.DT_BLK:
	case unix.DT_DIR:
		if m.Marked[at] {
			return false
		}
		flags = unix.RENAME_NOREPLACE
	default: // DT_CHR may be a whiteout
		return false
	}
	return unix.Renameat2(int(src.Fd()), e.name, int(dst.Fd()), e.name, flags) == nil
}

// dirent is a name in a directory and its kind, which is unix.DT_UNKNOWN on file systems that do not say.
type dirent struct {
	name string
	kind uint8
}

// readDir lists a directory without a look at what is in it.
func readDir(dir *os.File) ([]dirent, error) {
	d, err := nodes.OpenDir(dir, ".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var list []dirent
	for buf := make([]byte, 16<<10); ; {
		n, err := unix.ReadDirent(int(d.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "readdir", Path: dir.Name(), Err: err}
		}
		if n == 0 {
			return list, nil
		}
		for rest := buf[:n]; len(rest) > 0; {
			const size, kind, name = 16, 18, 19 // struct linux_dirent64, getdents(2)
			length := int(binary.NativeEndian.Uint16(rest[size:]))
			e := dirent{kind: rest[kind]}
			e.name, _, _ = strings.Cut(string(rest[name:length]), "\x00")
			if e.name != "." && e.name != ".." {
				list = append(list, e)
			}
			rest = rest[length:]
		}
	}
}
