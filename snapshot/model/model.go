// Package model says what the result of a list of layers must be: a map from path to node, changed entry by entry, for tests to
// compare with what is on disk.
//
// It owns nothing on disk. Its invariant: it is written from the image specification's layer.md and docs/adr/0003-layer-application.md,
// without package unpack and without the fix-ups of package snapshot, so that it can tell on them. It applies the tars
// one after the other to one tree; it never looks at a layer by itself.
//
// The surprising rule: where the order of the entries decides what a layer unpacked once, for every parent, can't know, the
// answer is ErrUndecided, and tests only ask that all ways of putting the layers together agree.
package model

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

var (
	// ErrInvalid says that the layers have to be refused.
	ErrInvalid = errors.New("invalid layer")
	// ErrUndecided says that the result depends on the order of entries in a way that no rule decides.
	ErrUndecided = errors.New("undecided")
)

// node is an inode.
type node struct {
	kind   string // as unpacktest.List has it
	mode   int64
	uid    int
	gid    int
	time   time.Time
	data   string // what List shows after the time: content, target, numbers
	target string // of a symlink
	xattrs map[string]string
	kids   map[string]*name // of a directory
}

// name is a directory's entry.
type name struct {
	*node
	layer int  // the layer that made or last described it
	lower bool // a hard link to what only the layers below have
}

func newDir(layer int) *name {
	return &name{node: &node{kind: "dir", mode: 0o755, time: time.Unix(0, 0), kids: map[string]*name{}}, layer: layer}
}

func (n *name) isDir() bool { return n.kind == "dir" }

// Apply lays the layers over each other, lowest first, and returns the lines that unpacktest.List shows of the result.
func Apply(layers [][]unpacktest.Item) ([]string, error) {
	root := newDir(-1)
	for i, items := range layers {
		a := applier{
			root: root, layer: i, followed: map[*name]bool{}, gone: map[spot]bool{}, reached: map[*name]bool{},
			aliased: map[*name]bool{}, entered: map[*name]bool{}, targets: map[*name]bool{},
		}
		for _, item := range items {
			if err := a.item(item); err != nil {
				return nil, fmt.Errorf("layer %d: %q: %w", i, item.Header.Name, err)
			}
		}
		if err := a.finish(); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return list(root), nil
}

func list(root *name) (lines []string) {
	all := map[string]*name{}
	root.gather("", all)
	first := map[*node]string{}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		n := all[path]
		line := n.describe() + n.also(path, first) + n.attributes()
		switch {
		case path != "":
			lines = append(lines, path+" "+line)
		case line != "dir @0":
			lines = append(lines, ". "+line)
		}
	}
	return lines
}

func (n *name) gather(path string, all map[string]*name) {
	all[path] = n
	for k, kid := range n.kids {
		kid.gather(strings.TrimPrefix(path+"/"+k, "/"), all)
	}
}

// also names the first path of an inode.
func (n *name) also(path string, first map[*node]string) string {
	if f, ok := first[n.node]; ok {
		return " = " + f
	}
	first[n.node] = path
	return ""
}

func (n *name) attributes() (text string) {
	for _, k := range slices.Sorted(maps.Keys(n.xattrs)) {
		text += fmt.Sprintf(" %s=%q", k, n.xattrs[k])
	}
	return text
}

func (n *name) describe() string {
	line := n.kind
	usual := map[string]int64{"dir": 0o755, "symlink": 0o777}[n.kind]
	if usual == 0 {
		usual = 0o644
	}
	if n.mode != usual {
		line += fmt.Sprintf(" %04o", n.mode)
	}
	if n.uid != 0 || n.gid != 0 {
		line += fmt.Sprintf(" %d:%d", n.uid, n.gid)
	}
	switch {
	case n.time.Nanosecond() != 0:
		line += fmt.Sprintf(" @%d.%09d", n.time.Unix(), n.time.Nanosecond())
	case n.time.Unix() != unpacktest.Time:
		line += fmt.Sprintf(" @%d", n.time.Unix())
	}
	return line + n.data
}
