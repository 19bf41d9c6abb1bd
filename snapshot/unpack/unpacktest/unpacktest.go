// Package unpacktest builds layers for tests from compact lists, and shows directories as lines of text.
//
// It owns nothing on disk. Its invariant: List does not use package unpack, so that it can show faults of that
// package.
//
// The surprising rule: the lines of List leave out what is usual: mode 0755 of directories and 0644 of files,
// owner 0:0, the time Time.
package unpacktest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Time is the modification time of items, in seconds.
const Time = 1_000_000_000

// Item is one entry of a tar.
type Item struct {
	Header tar.Header
	Body   string
}

func item(t byte, name string, mode int64) Item {
	return Item{Header: tar.Header{
		Typeflag: t, Name: name, Mode: mode, ModTime: time.Unix(Time, 0), Format: tar.FormatPAX,
	}}
}

// D is a directory.
func D(name string) Item { return item(tar.TypeDir, name, 0o755) }

// F is a regular file.
func F(name, data string) Item {
	i := item(tar.TypeReg, name, 0o644)
	i.Body, i.Header.Size = data, int64(len(data))
	return i
}

// S is a symlink.
func S(name, target string) Item { return item(tar.TypeSymlink, name, 0o777).link(target) }

// H is a hard link.
func H(name, target string) Item { return item(tar.TypeLink, name, 0o644).link(target) }

// C is a character device.
func C(name string, major, minor int64) Item {
	return item(tar.TypeChar, name, 0o644).device(major, minor)
}

// B is a block device.
func B(name string, major, minor int64) Item {
	return item(tar.TypeBlock, name, 0o644).device(major, minor)
}

// P is a fifo.
func P(name string) Item { return item(tar.TypeFifo, name, 0o644) }

// W is an empty file. Its name is expected to be that of a marker, such as ".wh.NAME".
func W(name string) Item { return F(name, "") }

// G is a PAX global header with one record.
func G(key, value string) Item {
	return Item{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{key: value}}}
}

func (i Item) link(target string) Item {
	i.Header.Linkname = target
	return i
}

func (i Item) device(major, minor int64) Item {
	i.Header.Devmajor, i.Header.Devminor = major, minor
	return i
}

// Mode sets permission, setuid, setgid and sticky bits.
func (i Item) Mode(mode int64) Item {
	i.Header.Mode = mode
	return i
}

// Owner sets uid and gid.
func (i Item) Owner(uid, gid int) Item {
	i.Header.Uid, i.Header.Gid = uid, gid
	return i
}

// At sets the modification time.
func (i Item) At(sec, nsec int64) Item {
	i.Header.ModTime = time.Unix(sec, nsec)
	return i
}

// Record adds a PAX record.
func (i Item) Record(key, value string) Item {
	records := map[string]string{key: value}
	for k, v := range i.Header.PAXRecords {
		records[k] = v
	}
	i.Header.PAXRecords = records
	return i
}

// Xattr adds an extended attribute.
func (i Item) Xattr(name, value string) Item { return i.Record("SCHILY.xattr."+name, value) }

// Tar builds an archive.
func Tar(tb testing.TB, items ...Item) []byte {
	tb.Helper()
	data, err := Archive(items...)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// Archive is like Tar, for programs.
func Archive(items ...Item) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		hdr := i.Header
		if err := w.WriteHeader(&hdr); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", hdr.Name, err)
		}
		if _, err := w.Write([]byte(i.Body)); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", hdr.Name, err)
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// Gzip compresses data.
func Gzip(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// List shows a tree, a line for each path, sorted by its bytes:
//
//	PATH TYPE [MODE] [UID:GID] [@SEC[.NSEC]] [CONTENT | -> TARGET | MAJOR:MINOR]
//	    [= FIRST NAME OF THE INODE] [XATTR="VALUE"...]
//
// Types are dir, file, symlink, fifo, char, block, whiteout (of which nothing else is shown) and socket. Overlay's
// xattrs are shown as opaque and origin. The root is left out if it has the attributes of an implied directory: mode
// 0755, owner 0:0, time 0, no xattrs.
func List(tb testing.TB, dir string) []string {
	tb.Helper()
	var lines []string
	first := make(map[uint64]string)
	for _, path := range walk(tb, dir, ".") {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, path), &st); err != nil {
			tb.Fatalf("%s: %v", path, err)
		}
		line := describe(tb, filepath.Join(dir, path), &st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 && !strings.HasPrefix(line, "whiteout") {
			if f, ok := first[st.Ino]; ok {
				line += " = " + f
			} else {
				first[st.Ino] = path
			}
		}
		line += xattrs(tb, filepath.Join(dir, path))
		if path == "." && line == "dir @0" {
			continue
		}
		lines = append(lines, quotePath(path)+" "+line)
	}
	return lines
}

func quotePath(path string) string {
	q := fmt.Sprintf("%q", path)
	if q == `"`+path+`"` && !strings.Contains(path, " ") {
		return path
	}
	return q
}

func walk(tb testing.TB, dir, rel string) []string {
	tb.Helper()
	paths := []string{rel}
	children, err := os.ReadDir(filepath.Join(dir, rel))
	if err != nil {
		tb.Fatal(err)
	}
	for _, c := range children {
		path := filepath.Join(rel, c.Name())
		if c.IsDir() {
			paths = append(paths, walk(tb, dir, path)...)
		} else {
			paths = append(paths, path)
		}
	}
	if rel == "." {
		sort.Strings(paths[1:])
	}
	return paths
}

var types = map[uint32]string{
	unix.S_IFDIR: "dir", unix.S_IFREG: "file", unix.S_IFLNK: "symlink", unix.S_IFIFO: "fifo",
	unix.S_IFCHR: "char", unix.S_IFBLK: "block", unix.S_IFSOCK: "socket",
}

func describe(tb testing.TB, path string, st *unix.Stat_t) string {
	tb.Helper()
	kind := types[st.Mode&unix.S_IFMT]
	if kind == "char" && st.Rdev == 0 {
		return "whiteout"
	}
	usual := map[string]uint32{"dir": 0o755, "symlink": 0o777}[kind]
	if usual == 0 {
		usual = 0o644
	}
	line := kind
	if mode := st.Mode & 0o7777; mode != usual {
		line += fmt.Sprintf(" %04o", mode)
	}
	if st.Uid != 0 || st.Gid != 0 {
		line += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
	}
	switch {
	case st.Mtim.Nsec != 0:
		line += fmt.Sprintf(" @%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	case st.Mtim.Sec != Time:
		line += fmt.Sprintf(" @%d", st.Mtim.Sec)
	}
	switch kind {
	case "file":
		line += " " + content(tb, path)
	case "symlink":
		target, err := os.Readlink(path)
		if err != nil {
			tb.Fatal(err)
		}
		line += " -> " + target
	case "char", "block":
		line += fmt.Sprintf(" %d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	}
	return line
}

func content(tb testing.TB, path string) string {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if len(data) > 64 {
		return fmt.Sprintf("%d bytes %x", len(data), sha256.Sum256(data))
	}
	return fmt.Sprintf("%q", data)
}

func xattrs(tb testing.TB, path string) string {
	tb.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		if err == unix.EOPNOTSUPP {
			return ""
		}
		tb.Fatalf("%s: %v", path, err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	var line string
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			tb.Fatalf("%s: xattr %s: %v", path, name, err)
		}
		short := strings.TrimPrefix(strings.TrimPrefix(name, "trusted.overlay."), "user.overlay.")
		switch {
		case name == "security.selinux":
		case short == "opaque" && string(value[:n]) == "y", short == "origin" && n == 0:
			line += " " + short
		default:
			line += fmt.Sprintf(" %s=%q", name, value[:n])
		}
	}
	return line
}
