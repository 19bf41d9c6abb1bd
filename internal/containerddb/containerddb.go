// Package containerddb finds the database file that a containerd process has open, and its config file.
//
// It owns nothing on disk.
//
// Its invariant: it reports a database only if the process has the file open or locked, never because of a
// path alone.
//
// The surprising rule: as root without CAP_SYS_PTRACE, which is how Tank's unit runs, the links in
// /proc/PID/fd of a process with more capabilities can't be read. Then the package compares the locks of the
// process in /proc/locks with the paths at which its database may be.
package containerddb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/peer"
)

// File identifies the file of a database.
type File struct {
	Path  string // in the mount namespace of the process that has it open
	Inode uint64
	Born  time.Time // creation time; zero if the file system does not record it
	// Writes is the number of the last transaction in a bbolt database; 0 if it can't be read.
	Writes uint64
}

// Same reports whether both are the same file. It ignores device numbers, because they may change at a boot.
func (f File) Same(other File) bool {
	return f.Inode != 0 && f.Inode == other.Inode && !f.Born.IsZero() && f.Born.Equal(other.Born)
}

var (
	// ErrNone is returned if the process has no containerd database open.
	ErrNone = errors.New("no containerd database is open")
	// ErrHidden is returned if it can't be found out which files the process has open.
	ErrHidden = errors.New("the process can't be looked at")
)

// suffixes are the ends of the paths of containerd's database, and of BuildKit's, which has the same format.
var suffixes = []string{"/io.containerd.metadata.v1.bolt/meta.db", "/containerdmeta.db"}

func isDatabase(path string) bool {
	return slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(path, s) })
}

// Find returns the containerd database that a process has open. places are further paths where it may be, for
// a process whose open files are hidden. It returns ErrNone if there is no database, and ErrHidden if that
// can't be found out.
func Find(p peer.Process, places []string) (File, error) {
	if p.PID == 0 {
		return File{}, ErrHidden
	}
	f, err := openDatabase(p.PID)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		f, err = lockedDatabase(p.PID, places)
	}
	if !p.Unchanged() {
		return File{}, ErrHidden // the PID now belongs to another process
	}
	return f, err
}

// openDatabase finds the database among the open files of a process.
func openDatabase(pid int) (found File, err error) {
	dir := proc(pid, "fd")
	names, err := os.ReadDir(dir)
	if err != nil {
		return found, err
	}
	for _, n := range names {
		link := filepath.Join(dir, n.Name())
		path, err := os.Readlink(link)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was closed meanwhile
		}
		if err != nil {
			return found, err
		}
		path = strings.TrimSuffix(path, " (deleted)")
		if !isDatabase(path) {
			continue
		}
		f, err := read(link)
		if err != nil {
			return found, fmt.Errorf("%w: %w", ErrHidden, err)
		}
		if found.Inode != 0 && !found.Same(f) {
			return found, fmt.Errorf("%w: it has two databases open", ErrHidden)
		}
		f.Path = path
		found = f
	}
	if found.Inode == 0 {
		return found, ErrNone
	}
	return found, nil
}

// lockedDatabase finds the database by comparing the locks of a process with the places where it may be.
func lockedDatabase(pid int, places []string) (File, error) {
	inodes, err := locked(pid)
	if err != nil {
		return File{}, fmt.Errorf("%w: %w", ErrHidden, err)
	}
	if len(inodes) == 0 {
		return File{}, ErrNone
	}
	for _, path := range slices.Concat(mapped(pid), placesOf(arguments(pid)), places) {
		if f, err := read(path); err == nil && inodes[f.Inode] && Busy(f) {
			return f, nil
		}
	}
	return File{}, ErrHidden
}

// locked returns the inode numbers of the files on which a process holds an exclusive flock.
func locked(pid int) (map[uint64]bool, error) {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	inodes := map[uint64]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 3: FLOCK  ADVISORY  WRITE 440 fe:00:9978021 0 EOF
		w := strings.Fields(lines.Text())
		if len(w) < 6 || w[1] != "FLOCK" || w[3] != "WRITE" || w[4] != strconv.Itoa(pid) {
			continue
		}
		if n, err := strconv.ParseUint(w[5][strings.LastIndexByte(w[5], ':')+1:], 10, 64); err == nil {
			inodes[n] = true
		}
	}
	return inodes, nil
}

// mapped returns the paths of databases that a process has mapped into its memory. Some kernels show these
// even if they hide the open files.
func mapped(pid int) (paths []string) {
	f, err := os.Open(proc(pid, "maps"))
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, path, ok := strings.Cut(lines.Text(), " /"); ok && isDatabase("/"+path) {
			paths = append(paths, "/"+path)
		}
	}
	return paths
}

// maxConfig is the largest part of a config file that is read, in bytes.
const maxConfig = 1 << 20

// placesOf returns the paths where the database of a containerd may be, by its command line and its config file.
func placesOf(args []string) (places []string) {
	config, roots := configOf(args)
	roots = append(append(roots, rootOf(config)...), "/var/lib/containerd")
	for _, r := range roots {
		if filepath.IsAbs(r) {
			places = append(places, filepath.Join(r, suffixes[0]), filepath.Join(r, suffixes[1]))
		}
	}
	return places
}

// configOf returns the config file of a containerd, and the roots in its command line.
func configOf(args []string) (config string, roots []string) {
	config = "/etc/containerd/config.toml"
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		switch strings.TrimLeft(name, "-") {
		case "root":
			roots = append(roots, value)
		case "config", "c":
			config = value
		}
	}
	return config, roots
}

// ConfigFile returns the path of a containerd's config file, by the command line of the process. The file may
// not exist. It returns ErrHidden if the path can't be found out.
func ConfigFile(p peer.Process) (string, error) {
	if p.PID == 0 {
		return "", ErrHidden
	}
	args := arguments(p.PID)
	config, _ := configOf(args)
	if len(args) == 0 || !p.Unchanged() || !filepath.IsAbs(config) {
		return "", ErrHidden
	}
	return config, nil
}

func arguments(pid int) []string {
	b, err := os.ReadFile(proc(pid, "cmdline"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// rootOf reads the line root = "PATH" of a containerd config. It does not understand other forms.
func rootOf(config string) []string {
	f, err := os.OpenFile(config, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	for lines := bufio.NewScanner(io.LimitReader(f, maxConfig)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), "=")
		if ok && strings.Trim(name, " \t") == "root" {
			value, _, _ = strings.Cut(value, "#")
			return []string{strings.Trim(value, " \t\"'")}
		}
	}
	return nil
}

// read returns the File at a path.
func read(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	d, err := describe(f)
	d.Path = path
	return d, err
}

// Writes returns the number of the last transaction in a database, or 0 if its file is no longer the one that f
// identifies.
func Writes(f File) uint64 {
	now, err := read(f.Path)
	if err != nil || !now.Same(f) {
		return 0
	}
	return now.Writes
}

func describe(f *os.File) (d File, err error) {
	var st unix.Statx_t
	err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_TYPE|unix.STATX_BTIME, &st)
	if err != nil {
		return d, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return d, fmt.Errorf("%s: not a regular file", f.Name())
	}
	d.Inode = st.Ino
	if st.Mask&unix.STATX_BTIME != 0 && (st.Btime.Sec != 0 || st.Btime.Nsec != 0) {
		d.Born = time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).UTC()
	}
	d.Writes = lastTransaction(f)
	return d, nil
}

func proc(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// Busy reports whether a process holds the lock that bbolt takes on an open database, if the file is still
// the one that f identifies.
func Busy(f File) bool {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	if now, err := describe(file); err != nil || !now.Same(f) {
		return false
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) // released when the file is closed
	return errors.Is(err, unix.EWOULDBLOCK)
}
