package integration

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"sort"
	"strings"
)

// model computes the tree that a list of layers has to unpack to. It applies the tars to a map from path to node, one
// after another, by the rules of layer.md in the OCI image specification, and by these rules where that leaves a
// choice:
//
//   - an existing directory that a layer only implies keeps its attributes, times included; a missing one is made with
//     mode 0755, owner 0:0 and time 0;
//   - paths follow existing symlinks, inside the root; an implied directory replaces a file of the same path;
//   - a whiteout removes only what lower layers put there, wherever it is in the tar; it implies no directory;
//   - a hard link's header sets the attributes of the inode, under all its names.
//
// Its author did not look at the code that extracts layers.
type model struct {
	nodes map[string]*inode // by clean path without a leading slash; the root is not in it
	own   map[string]bool   // paths that the current layer put there
}

// inode has the attributes that hard-linked paths share.
type inode struct {
	kind     byte
	mode     int64
	uid, gid int
	mtime    int64
	data     []byte
	target   string
	rdev     []uint32 // of a device: major, minor
	xattrs   map[string]string
}

// ExpectedTree applies the layers to an empty directory and lists the result.
func ExpectedTree(layers [][]Entry) ([]Node, error) {
	m := &model{nodes: map[string]*inode{}}
	for i, layer := range layers {
		m.own = map[string]bool{}
		for _, e := range layer {
			if err := m.apply(e); err != nil {
				return nil, fmt.Errorf("layer %d: %s: %w", i, e.Name, err)
			}
		}
	}
	return m.list(), nil
}

func (m *model) apply(e Entry) error {
	name := strings.Trim(path.Clean("/"+e.Name), "/")
	parent, base := path.Split(name)
	parent = strings.TrimSuffix(parent, "/")
	if strings.HasPrefix(base, ".wh.") {
		at, ok := m.resolve(parent)
		if !ok {
			return nil // nothing to remove
		}
		if base == ".wh..wh..opq" {
			m.remove(at, false)
		} else {
			m.remove(join(at, strings.TrimPrefix(base, ".wh.")), true)
		}
		return nil
	}
	at := join(m.imply(parent), base)
	old := m.nodes[at]
	switch {
	case e.Typeflag == tar.TypeLink:
		dir, file := path.Split(strings.Trim(path.Clean("/"+e.Linkname), "/"))
		from, _ := m.resolve(strings.TrimSuffix(dir, "/"))
		n := m.nodes[join(from, file)]
		if n == nil {
			return fmt.Errorf("links to %s, which does not exist", e.Linkname)
		}
		m.removeTree(at)
		m.nodes[at] = n
		n.set(e)
	case e.Typeflag == tar.TypeDir && old != nil && old.kind == tar.TypeDir:
		old.set(e)
	default:
		m.removeTree(at)
		n := &inode{kind: e.Typeflag, data: e.Data, target: e.Linkname}
		n.set(e)
		m.nodes[at] = n
	}
	m.own[at] = true
	return nil
}

// set sets the attributes of an inode from a header.
func (n *inode) set(e Entry) {
	if e.Typeflag == tar.TypeChar || e.Typeflag == tar.TypeBlock {
		n.rdev = []uint32{uint32(e.Devmajor), uint32(e.Devminor)}
	}
	n.mode, n.uid, n.gid, n.mtime = e.Mode, e.Uid, e.Gid, e.ModTime.Unix()
	n.xattrs = map[string]string{}
	for k, v := range e.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			n.xattrs[name] = hex.EncodeToString([]byte(v))
		}
	}
}

// imply makes the directory p and those above it where they are missing, and returns where p is after all symlinks.
func (m *model) imply(p string) string {
	at := ""
	for part := range strings.SplitSeq(p, "/") {
		if part == "" {
			continue
		}
		next := join(at, part)
		if n := m.nodes[next]; n != nil && n.kind == tar.TypeSymlink {
			at = m.imply(linkTarget(at, n.target))
			continue
		}
		if n := m.nodes[next]; n == nil || n.kind != tar.TypeDir {
			m.removeTree(next)
			m.nodes[next] = &inode{kind: tar.TypeDir, mode: 0o755}
		}
		m.own[next] = true
		at = next
	}
	return at
}

// resolve is imply without making directories; ok is false where one is missing.
func (m *model) resolve(p string) (at string, ok bool) {
	for part := range strings.SplitSeq(p, "/") {
		if part == "" {
			continue
		}
		next := join(at, part)
		n := m.nodes[next]
		if n != nil && n.kind == tar.TypeSymlink {
			if next, ok = m.resolve(linkTarget(at, n.target)); !ok {
				return "", false
			}
			n = m.nodes[next]
		}
		if n == nil || n.kind != tar.TypeDir {
			return "", false
		}
		at = next
	}
	return at, true
}

func linkTarget(dir, target string) string {
	if !path.IsAbs(target) {
		target = "/" + dir + "/" + target
	}
	return strings.Trim(path.Clean(target), "/")
}

func join(dir, base string) string {
	return strings.Trim(path.Join(dir, base), "/")
}

// remove removes what lower layers put below p and, with itself, at p.
func (m *model) remove(p string, itself bool) {
	for q := range m.nodes {
		if (q == p && itself || strings.HasPrefix(q, p+"/")) && !m.own[q] {
			delete(m.nodes, q)
		}
	}
}

// removeTree removes p and everything below it, whichever layer put it there.
func (m *model) removeTree(p string) {
	for q := range m.nodes {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(m.nodes, q)
			delete(m.own, q)
		}
	}
}

// list returns the nodes as Tree does: sorted by path, without the root.
func (m *model) list() []Node {
	paths := make([]string, 0, len(m.nodes))
	for p := range m.nodes {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	first := map[*inode]string{}
	nodes := make([]Node, 0, len(paths))
	for _, p := range paths {
		n := m.nodes[p]
		out := Node{Path: p, Mode: fmt.Sprintf("%04o", n.mode), UID: n.uid, GID: n.gid, MTime: n.mtime, Links: first[n]}
		switch n.kind {
		case tar.TypeDir:
			out.Type = "dir"
		case tar.TypeSymlink:
			out.Type, out.Target = "symlink", &n.target
		case tar.TypeFifo:
			out.Type = "fifo"
		case tar.TypeChar:
			out.Type, out.Rdev = "char", n.rdev
		case tar.TypeBlock:
			out.Type, out.Rdev = "block", n.rdev
		default:
			size, sum := int64(len(n.data)), sha256.Sum256(n.data)
			out.Type, out.Size, out.SHA256 = "file", &size, hex.EncodeToString(sum[:])
		}
		if len(n.xattrs) > 0 {
			out.XAttrs = n.xattrs
		}
		if first[n] == "" {
			first[n] = p
		}
		nodes = append(nodes, out)
	}
	return nodes
}
