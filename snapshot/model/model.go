// Package model computes what a list of layers must give: it applies their entries one after the other to a
// tree in memory, so that tests can compare its lines with the files on disk.
//
// It owns nothing on disk. Its invariant: it is written from the image specification's layer.md and from
// docs/adr/0003-layer-application.md, without package unpack and without the fix-ups of package snapshot, so
// that it cannot share their faults. It never looks at a layer alone: every entry changes the tree that all
// entries before it have made.
//
// The surprising rule: a whiteout takes away names of the layers below only, so that the tree notes for each
// name which layer made it.
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

// ErrInvalid means that the layers have to be refused.
var ErrInvalid = errors.New("invalid layer")

// node is an inode.
type node struct {
	kind   string // the word that unpacktest.List shows
	mode   int64
	uid    int
	gid    int
	time   time.Time
	data   string // what List shows after the time: content, target, numbers
	target string // of a symlink
	xattrs map[string]string
	kids   map[string]*name // of a directory
}

// name is a name in a directory. Several names of one inode are hard links.
type name struct {
	*node
	layer int  // the layer with the last entry of this name
	below bool // a hard link that this layer made to a file of the layers below
}

func newDir(layer int) *name {
	return &name{node: &node{kind: "dir", mode: 0o755, time: time.Unix(0, 0), kids: map[string]*name{}}, layer: layer}
}

func (n *name) isDir() bool { return n.kind == "dir" }

// Result is the tree that layers give, and what came up on the way.
type Result struct {
	// Lines are what unpacktest.List shows of the tree. The root directory is the first, unless it is as usual.
	Lines []string
	// Seen counts how often each case came up.
	Seen map[Case]int
}

// Apply lays the layers over each other, lowest first. What it saw until then is returned with an error, too.
func Apply(layers [][]unpacktest.Item) (Result, error) {
	root, seen := newDir(-1), map[Case]int{}
	for i, items := range layers {
		a := applier{root: root, layer: i, seen: seen, linked: map[spot]bool{}, gone: map[spot]bool{}}
		for _, item := range items {
			if err := a.item(item); err != nil {
				return Result{Seen: seen}, fmt.Errorf("layer %d: %q: %w", i, item.Header.Name, err)
			}
		}
		a.finish(root.node)
	}
	return Result{list(root), seen}, nil
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
