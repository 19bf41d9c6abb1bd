package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Node is one entry of a tree listing in the format of the shared images' tree.py: one JSON object a line, keys sorted.
type Node struct {
	GID    int               `json:"gid"`
	Links  string            `json:"links,omitempty"` // if the file has several names, the first of them
	Mode   string            `json:"mode"`
	MTime  int64             `json:"mtime"`
	Path   string            `json:"path"`
	Rdev   []uint32          `json:"rdev,omitempty"`
	SHA256 string            `json:"sha256,omitempty"`
	Size   *int64            `json:"size,omitempty"`
	Target *string           `json:"target,omitempty"`
	Type   string            `json:"type"`
	UID    int               `json:"uid"`
	XAttrs map[string]string `json:"xattrs,omitempty"`
}

// Tree lists everything below root, sorted by path bytes; the entry "." is left out.
func Tree(root string) ([]Node, error) {
	var paths []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p != root {
			paths = append(paths, p[len(root)+1:])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sort.Strings(paths)
	type inode struct{ dev, ino uint64 }
	first := map[inode]string{}
	nodes := make([]Node, 0, len(paths))
	for _, p := range paths {
		full := filepath.Join(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", full, err)
		}
		n := Node{Path: p, Mode: fmt.Sprintf("%04o", st.Mode&0o7777), UID: int(st.Uid), GID: int(st.Gid),
			MTime: st.Mtim.Sec}
		if err := n.fill(full, &st); err != nil {
			return nil, err
		}
		if n.Type == "file" && st.Nlink > 1 {
			k := inode{st.Dev, st.Ino}
			if f, ok := first[k]; ok {
				n.Links = f
			} else {
				first[k] = p
			}
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// fill sets the fields that depend on the type, and the xattrs.
func (n *Node) fill(full string, st *unix.Stat_t) error {
	device := []uint32{unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.Type = "dir"
	case unix.S_IFLNK:
		n.Type = "symlink"
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		n.Target = &target
	case unix.S_IFIFO:
		n.Type = "fifo"
	case unix.S_IFCHR:
		n.Type, n.Rdev = "char", device
	case unix.S_IFBLK:
		n.Type, n.Rdev = "block", device
	case unix.S_IFREG:
		n.Type, n.Size = "file", &st.Size
		sum, err := fileSHA256(full)
		if err != nil {
			return err
		}
		n.SHA256 = sum
	}
	x, err := xattrs(full)
	n.XAttrs = x
	return err
}

func fileSHA256(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// xattrs returns all xattrs except overlayfs's own, with values in hex; nil if there are none.
func xattrs(full string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	size, err := unix.Llistxattr(full, buf)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: list xattrs: %w", full, err)
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: xattr %s: %w", full, name, err)
		}
		out[name] = hex.EncodeToString(value[:n])
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// ReadListing reads a listing in the format of tree.py; "." is left out.
func ReadListing(name string) ([]Node, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var nodes []Node
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var n Node
		if err := d.Decode(&n); errors.Is(err, io.EOF) {
			return nodes, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if n.Path != "." {
			nodes = append(nodes, n)
		}
	}
}

// CompareTrees returns a line for each difference, at most limit of them.
func CompareTrees(want, got []Node, limit int) []string {
	w, g := byPath(want), byPath(got)
	var paths []string
	for p := range w {
		paths = append(paths, p)
	}
	for p := range g {
		if _, ok := w[p]; !ok {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	var diffs []string
	for _, p := range paths {
		if w[p] == g[p] {
			continue
		}
		if len(diffs) == limit {
			return append(diffs, "…")
		}
		diffs = append(diffs, fmt.Sprintf("%s\n  want %s\n  got  %s", p, orAbsent(w[p]), orAbsent(g[p])))
	}
	return diffs
}

func orAbsent(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func byPath(nodes []Node) map[string]string {
	m := make(map[string]string, len(nodes))
	for _, n := range nodes {
		b, err := json.Marshal(n)
		if err != nil {
			panic(err)
		}
		m[n.Path] = string(b)
	}
	return m
}

// CheckTree fails the test if the tree at root differs from want.
func CheckTree(t testing.TB, what string, want []Node, root string) {
	t.Helper()
	got, err := Tree(root)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if diffs := CompareTrees(want, got, 20); len(diffs) > 0 {
		t.Errorf("%s: %d entries wanted, %d found; differs from the listed tree:\n%s", what, len(want), len(got),
			strings.Join(diffs, "\n"))
	}
}
