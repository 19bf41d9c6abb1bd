package tank

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/regular"
)

// ErrNoRoot is returned by an Open that may not make a root when the directory is missing or empty. Its class is
// errdefs.ErrNotFound.
var ErrNoRoot = cause.Mark(fmt.Errorf("no root here: %w", errdefs.ErrNotFound), cause.NoRoot, "")

const (
	// markName is the file that makes a directory a root. It is the first file of a root, and synced before the next
	// one is made.
	markName = "tank-root"
	// markFormat is the format of roots that this Tank makes and opens. A newer one is refused.
	markFormat = 1
	// markText is the first line of the mark, before the format's number.
	markText = "tank root "
	// markDaemon is the line of the mark that makes a root a daemon's; see Options.Daemon.
	markDaemon = "daemon"
	maxMark    = 4 << 10
)

// mark is what a root's mark records.
type mark struct {
	format int
	daemon bool
}

func (m mark) String() string {
	text := markText + strconv.Itoa(m.format) + "\n"
	if m.daemon {
		text += markDaemon + "\n"
	}
	return text
}

// state is what Tank takes a directory for.
type state int

const (
	missing  state = iota // no file has the name
	empty                 // a directory with nothing in it, or nothing but lost+found
	marked                // a root
	unmarked              // a root that Tank 0.1.0 made, which wrote no mark
	foreign               // anything else
)

// examine finds out what the directory is. It changes nothing. It returns errdefs.ErrFailedPrecondition when the mark
// was written by a newer Tank or is not valid, and when the path is not a directory.
func examine(root string) (state, mark, error) {
	fi, err := os.Lstat(root)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return missing, mark{}, nil
	case err != nil:
		return foreign, mark{}, err
	case fi.Mode().Type() == os.ModeSymlink:
		return foreign, mark{}, noRoot("a symbolic link: name the directory itself")
	case !fi.IsDir():
		return foreign, mark{}, noRoot("not a directory")
	}
	m, err := readMark(root)
	var names []string
	if err != nil {
		if names, err = namesIn(root); err != nil {
			return foreign, mark{}, err
		}
		// Another process may be making a root here. It writes the mark first, so no other file of it is seen before the
		// mark.
		m, err = readMark(root)
	}
	switch {
	case err == nil && m.format > markFormat:
		return foreign, m, cause.Mark(fmt.Errorf("of format %d, made by a newer Tank: this one knows format %d: %w",
			m.format, markFormat, errdefs.ErrFailedPrecondition), cause.Newer, "")
	case err == nil:
		return marked, m, nil
	case !errors.Is(err, os.ErrNotExist) && (!errors.Is(err, errNoMark) || !madeByFirst(root, names)):
		err = fmt.Errorf("its mark: %w: %w", err, errdefs.ErrFailedPrecondition)
		if cause.Of(err).Kind == "" {
			err = cause.Mark(err, cause.ForeignDirectory, "")
		}
		return foreign, m, err
	case !slices.ContainsFunc(names, counts):
		return empty, m, nil
	case madeByFirst(root, names):
		return unmarked, m, nil
	}
	return foreign, m, nil
}

// noRoot is the error for what can't be a root.
func noRoot(why string) error {
	return cause.Mark(fmt.Errorf("%s: %w", why, errdefs.ErrFailedPrecondition), cause.ForeignDirectory, "")
}

// IsRoot reports whether a directory is a root, as far as this process can tell.
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

// counts reports whether an entry makes a directory count as not empty: lost+found does not, nor does the temporary
// file of a mark.
func counts(name string) bool {
	return name != "lost+found" && !strings.HasPrefix(name, markName+".")
}

// errNoMark is returned for a mark with the wrong content.
var errNoMark = fmt.Errorf("file %s: not a mark: %w", markName, errdefs.ErrDataLoss)

// readMark reads a root's mark; os.ErrNotExist when it has none.
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
func writeMark(root string, m mark) error {
	f, err := os.CreateTemp(root, markName+".*") // exclusively
	if err != nil {
		return err
	}
	_, err = f.WriteString(m.String())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(root, markName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(root)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// firstDirs are the directories that Tank 0.1.0 made in every root.
var firstDirs = []string{"blobs", "ingest", "layers", "rootfs", "snapshots", "staging"}

// firstNames are all the names that Tank 0.1.0 used in a root.
var firstNames = append([]string{
	"index.json", "lock", "lost", "lost+found", "metadata.db", "metadata.db.new", "metadata.db.old", "oci-layout", socketName,
}, firstDirs...)

// socketName is the admin socket that a process makes in the root that it owns.
const socketName = "tank.sock"

// madeByFirst reports whether Tank 0.1.0 made the directory: its file lock begins with a mode, and it has all of
// Tank's directories or, if it was not finished, no names other than Tank's. Without a lock file, the database decides.
func madeByFirst(root string, names []string) bool {
	has := func(n string) bool { return slices.Contains(names, n) }
	all := !slices.ContainsFunc(firstDirs, func(dir string) bool { return !has(dir) || !isDir(filepath.Join(root, dir)) })
	switch {
	case has("lock"):
		only := !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(firstNames, n) })
		return (all || only) && lockedByFirst(filepath.Join(root, "lock"))
	case all:
		return isBolt(filepath.Join(root, databaseName))
	}
	return false
}

func isDir(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.IsDir()
}

// lockedByFirst reports whether a file begins with a line as recordMode writes it.
func lockedByFirst(path string) bool {
	b, err := regular.ReadFile(path, maxLock)
	line, _, whole := strings.Cut(string(b), "\n")
	if err != nil || !whole {
		return false
	}
	m, err := parseMode(line)
	return err == nil && m.known()
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

// makeRoot makes the directory, unless it exists, and marks it.
func makeRoot(root string) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := checkOwner(unix.AT_FDCWD, root, os.Geteuid()); err != nil {
		return err
	}
	return errors.Join(writeMark(root, mark{format: markFormat}), syncDir(filepath.Dir(root)))
}

// ownDirs are Tank's own directories in a root, each after its parent. Directories of images are not among them.
var ownDirs = []string{
	"blobs", "blobs/sha256", "blobs/sha512", "ingest", "layers", "rootfs", "rootfs/sha256", "rootfs/sha512", "snapshots",
	"staging", "lost", "reserve",
}

// checkOwners returns errdefs.ErrFailedPrecondition unless the root and Tank's directories in it are directories that
// belong to the process's user and that no other user can write to. A user who can write to one could replace files in
// it by links.
func checkOwners(root string) error {
	uid := os.Geteuid()
	if err := checkOwner(unix.AT_FDCWD, root, uid); err != nil {
		return err
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	for _, dir := range ownDirs {
		if err := checkOwner(fd, dir, uid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("directory %s: %w", dir, err)
		}
	}
	return nil
}

// checkOwner checks the directory at a path that is relative to dir, a file descriptor.
func checkOwner(dir int, path string, uid int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return noRoot("not a directory but a symbolic link: mount another disk there instead")
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return noRoot("not a directory")
	case int(st.Uid) != uid:
		return cause.Mark(fmt.Errorf("belongs to another user: uid %d, this process is uid %d: %w",
			st.Uid, uid, errdefs.ErrFailedPrecondition), cause.ForeignUser, "")
	case st.Mode&0o022 != 0:
		return cause.Mark(fmt.Errorf("other users can write to it (mode %04o): %w",
			st.Mode&0o7777, errdefs.ErrFailedPrecondition), cause.Exposed, "")
	}
	return nil
}

// barren reports whether a root holds nothing that a database could have recorded. Then a missing database was not lost
// but never made.
func barren(root string) (bool, error) {
	names, err := namesIn(root)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(names, func(n string) bool { return n == databaseName || strings.HasPrefix(n, databaseName+".old") }) {
		return false, nil
	}
	for _, dir := range ownDirs {
		if dir == "staging" || dir == "reserve" {
			continue
		}
		names, err := namesIn(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		for _, n := range names {
			if counts(n) && n[0] != '.' && !slices.Contains(ownDirs, filepath.Join(dir, n)) {
				return false, nil
			}
		}
	}
	file, _, err := readIndex(root)
	return errors.Is(err, os.ErrNotExist) || err == nil && len(file.Manifests) == 0, nil
}
