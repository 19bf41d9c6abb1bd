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

// MarkedDirs returns the directories, other than the root, that are opaque, contain a whiteout, or have such a
// directory below them. All other directories are the same in overlay's form and in a plain tree, so they can be
// moved whole.
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

// take tries to move an entry with a single rename and without a stat: a file may replace another file, and a directory
// moves with its content if dst has no such name. It reports whether it moved the entry; if not, the caller has to call
// the method entry.
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

// dirent is an entry of a directory.
type dirent struct {
	name string
	kind uint8 // unix.DT_DIR and so on; unix.DT_UNKNOWN on file systems that do not report it
}

// readDir lists a directory without a stat of its entries.
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
