package rootlock

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/fsprobe"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/regular"
)

// ErrNoRoot is returned for a directory that is missing or empty, if no root may be made there. Its
// class is errdefs.ErrNotFound.
var ErrNoRoot = cause.Mark(fmt.Errorf("no root here: %w", errdefs.ErrNotFound), cause.NoRoot, "")

const (
	// markName is the file that makes a directory a root. It is the first file of a root, and
	// synced before the next one is made.
	markName = "tank-root"
	// markFormat is the format of the roots that this program makes and opens. A newer one is
	// refused.
	markFormat = 1
	// markText is the first line of the mark, before the format's number.
	markText = "tank root "
	// markDaemon is a line of the mark of a daemon's root.
	markDaemon = "daemon"
	// maxMark is the maximum size of a mark.
	maxMark = 4 << 10
)

// mark is the content of a mark.
type mark struct {
	format int
	daemon bool // the root is a daemon's
}

func (m mark) String() string {
	text := markText + strconv.Itoa(m.format) + "\n"
	if m.daemon {
		text += markDaemon + "\n"
	}
	return text
}

// state is what a directory is to Tank.
type state int

const (
	missing  state = iota // no file has the name
	empty                 // a directory with nothing in it, or nothing but lost+found
	marked                // a root
	unmarked              // a root that Tank 0.1.0 made, which wrote no mark
	noRoot                // anything else
)

// examine finds out what the directory is. It changes nothing. It returns
// errdefs.ErrFailedPrecondition when the mark was written by a newer Tank or is not valid, and when
// the path is not a directory.
func examine(root string) (state, mark, error) {
	fi, err := os.Lstat(root)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return missing, mark{}, nil
	case err != nil:
		return noRoot, mark{}, err
	case fi.Mode().Type() == os.ModeSymlink:
		return noRoot, mark{}, errNotRoot("a symbolic link: name the directory itself")
	case !fi.IsDir():
		return noRoot, mark{}, errNotRoot("not a directory")
	}
	m, err := readMark(root)
	var names []string
	if err != nil {
		if names, err = namesIn(root); err != nil {
			return noRoot, mark{}, err
		}
		// Another process may be making a root here. It writes the mark first, so no other file of
		// it is seen before the mark.
		m, err = readMark(root)
	}
	switch {
	case err == nil && m.format > markFormat:
		return noRoot, m, cause.Mark(fmt.Errorf("of format %d, made by a newer Tank: this one knows format %d: %w",
			m.format, markFormat, errdefs.ErrFailedPrecondition), cause.Newer, "")
	case err == nil:
		return marked, m, nil
	case !errors.Is(err, os.ErrNotExist) && (!errors.Is(err, errNoMark) || !madeByFirst(root, names)):
		err = fmt.Errorf("its mark: %w: %w", err, errdefs.ErrFailedPrecondition)
		if cause.Of(err).Kind == "" {
			err = cause.Mark(err, cause.NotRoot, "")
		}
		return noRoot, m, err
	case !slices.ContainsFunc(names, counts):
		return empty, m, nil
	case madeByFirst(root, names):
		return unmarked, m, nil
	}
	return noRoot, m, nil
}

// errNotRoot is the error for a file that can't be a root, or a part of one.
func errNotRoot(why string) error {
	return cause.Mark(fmt.Errorf("%s: %w", why, errdefs.ErrFailedPrecondition), cause.NotRoot, "")
}

// IsRoot reports whether a directory is a root. A directory that this process may not read counts
// as one.
func IsRoot(dir string) bool {
	st, _, err := examine(dir)
	return err == nil && (st == marked || st == unmarked) || errors.Is(err, os.ErrPermission)
}

func namesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// counts reports whether an entry makes a directory count as not empty: lost+found does not, nor
// does the temporary file of a mark or the directory of a probe.
func counts(name string) bool {
	return name != "lost+found" && !strings.HasPrefix(name, markName+".") && !strings.HasPrefix(name, fsprobe.Prefix)
}

// errNoMark is returned for a mark with wrong content.
var errNoMark = fmt.Errorf("file %s: not a mark: %w", markName, errdefs.ErrDataLoss)

// readMark reads the mark of a root. It returns os.ErrNotExist if there is none, and errNoMark for
// one that is not valid.
func readMark(root string) (m mark, err error) {
	b, err := regular.ReadFile(filepath.Join(root, markName), maxMark)
	if err != nil {
		return m, err
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	number, ok := strings.CutPrefix(lines[0], markText)
	if m.format, err = strconv.Atoi(number); !ok || err != nil || m.format < 1 {
		return m, errNoMark
	}
	m.daemon = slices.Contains(lines[1:], markDaemon)
	return m, nil
}

// writeMark writes the mark and syncs it. Two processes may do so at once.
func writeMark(fs fsys.FS, root string, m mark) error {
	name := filepath.Join(root, markName)
	temporary := fmt.Sprintf("%s.%d", name, rand.Uint64())
	f, err := fs.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(m.String()))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = fs.Rename(temporary, name)
	}
	if errors.Is(err, os.ErrNotExist) {
		if _, rerr := readMark(root); rerr == nil { // another process made the root and owns it
			return fs.SyncDir(root)
		}
	}
	if err != nil {
		return errors.Join(err, fs.Remove(temporary))
	}
	return fs.SyncDir(root)
}

// removeUnfinishedMarks removes what a process left that was writing a mark when it ended. The root is owned by this
// process. What can't be removed is left for the next owner.
func removeUnfinishedMarks(fs fsys.FS, root string) {
	names, _ := namesIn(root)
	for _, name := range names {
		if strings.HasPrefix(name, markName+".") {
			_ = fs.Remove(filepath.Join(root, name))
		}
	}
}

// firstDirs are the directories that Tank 0.1.0 made in every root.
var firstDirs = []string{"blobs", "ingest", "layers", "rootfs", "snapshots", "staging"}

// firstNames are all the names that Tank 0.1.0 used in a root.
var firstNames = append([]string{
	"index.json", "lock", "lost", "lost+found", "metadata.db", "metadata.db.new", "metadata.db.old", "oci-layout",
	"tank.sock",
}, firstDirs...)

// madeByFirst reports whether Tank 0.1.0 made the directory: its file lock begins with a mode, and
// it has all of Tank's directories or, if it was not finished, no names other than Tank's. Without
// a lock file, the database decides.
func madeByFirst(root string, names []string) bool {
	has := func(n string) bool { return slices.Contains(names, n) }
	all := !slices.ContainsFunc(firstDirs,
		func(dir string) bool { return !has(dir) || !isDir(filepath.Join(root, dir)) })
	switch {
	case has("lock"):
		only := !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(firstNames, n) })
		return (all || only) && lockedByFirst(filepath.Join(root, "lock"))
	case all:
		return isBolt(filepath.Join(root, Database))
	}
	return false
}

func isDir(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.IsDir()
}

// lockedByFirst reports whether a file begins with a line that recordAccess can have written.
func lockedByFirst(path string) bool {
	b, err := regular.ReadFile(path, maxLock)
	line, _, whole := strings.Cut(string(b), "\n")
	if err != nil || !whole {
		return false
	}
	a, err := parseAccess(line)
	return err == nil && a.known()
}

// isBolt reports whether a file looks like a database: the first page has bbolt's magic number.
func isBolt(path string) bool {
	f, err := regular.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 20)
	_, err = f.ReadAt(b, 0)
	return err == nil && (string(b[16:]) == "\xed\xda\x0c\xed" || string(b[16:]) == "\xed\x0c\xda\xed")
}
