package snapshot

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"os"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// compareSeal compares a seal with a directory, both ways, and reports each difference. Both are read once, in the
// order of their paths, so that the memory for it does not depend on how many entries there are, except for names of
// hard links.
func compareSeal(ctx context.Context, path, dir string, report func(path, what string)) error {
	sealed, err := openSeal(ctx, path)
	if err != nil {
		return err
	}
	root, err := openTree(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("directory %s: missing: %w", dir, errdefs.ErrDataLoss)
		}
		return err
	}
	defer root.Close()
	c := comparison{sealed: sealed.cursor(), report: report, inodes: newInodes()}
	if err := c.next(); err != nil {
		return err
	}
	if err := unpack.Walk(ctx, root, c.visit); err != nil {
		return err
	}
	return c.skipTo("", true)
}

// comparison walks a seal and a tree side by side.
type comparison struct {
	sealed *sealCursor
	want   *unpack.Entry // the next entry of the seal, nil at its end
	report func(path, what string)
	inodes *inodes
}

// next goes to the next entry of the seal that exists on disk.
func (c *comparison) next() (err error) {
	for {
		c.want, err = c.sealed.next()
		if errors.Is(err, io.EOF) {
			c.want = nil
			return nil
		}
		if err != nil || c.want.Type != unpack.Link {
			return err
		}
	}
}

// skipTo reports as missing the entries that the seal has before a path, or before the end.
func (c *comparison) skipTo(path string, end bool) error {
	for c.want != nil && (end || unpack.ComparePaths(c.want.Path, path) < 0) {
		c.report(c.want.Path, "missing")
		if err := c.next(); err != nil {
			return err
		}
	}
	return nil
}

// visit compares one entry of the tree.
func (c *comparison) visit(have *unpack.Entry, id unpack.InodeID) error {
	if err := c.skipTo(have.Path, false); err != nil {
		return err
	}
	if c.want == nil || c.want.Path != have.Path {
		c.report(have.Path, "not in the seal")
		return nil
	}
	what := difference(c.want, have)
	if what == "" && have.Type != unpack.Whiteout && !c.inodes.agree(c.want, id) {
		what = "links"
	}
	if what != "" {
		c.report(have.Path, what)
	}
	return c.next()
}

// inodes remembers which inodes with several names were seen, and under which group's name. It has hashes of the names,
// which may be long.
type inodes struct {
	seed  maphash.Seed
	group map[unpack.InodeID]uint64
	sole  map[unpack.InodeID]struct{} // of which the seal has one name only
}

func newInodes() *inodes {
	return &inodes{maphash.MakeSeed(), map[unpack.InodeID]uint64{}, map[unpack.InodeID]struct{}{}}
}

// agree reports whether the names of the inode so far are one group of hard links of the seal. A group is named by its
// first path.
func (n *inodes) agree(want *unpack.Entry, id unpack.InodeID) bool {
	if id == (unpack.InodeID{}) {
		return want.Inode == ""
	}
	group, seen := n.group[id]
	_, sole := n.sole[id]
	switch {
	case sole:
		return false
	case seen:
		return want.Inode != "" && maphash.String(n.seed, want.Inode) == group
	case want.Inode == "":
		n.sole[id] = struct{}{} // its other names lie elsewhere
		return true
	}
	n.group[id] = maphash.String(n.seed, want.Inode)
	return want.Inode == want.Path
}

// difference names the first thing in which two entries differ, "" when none. Names of hard links are not compared.
func difference(a, b *unpack.Entry) string {
	switch {
	case a.Type != b.Type:
		return "type"
	case a.Type == unpack.Whiteout:
		return "" // a whiteout only has to exist
	case a.Mode != b.Mode && a.Type != unpack.Symlink:
		return "mode"
	case a.UID != b.UID || a.GID != b.GID:
		return "owner"
	case a.Sec != b.Sec || a.Nsec != b.Nsec:
		return "time"
	case a.Size != b.Size && a.Type == unpack.File:
		return "size"
	case a.Hash != b.Hash:
		return "content"
	case a.Target != b.Target || a.Rdev != b.Rdev:
		return "target"
	case a.Opaque != b.Opaque:
		return "opaque"
	case !maps.Equal(a.Xattrs, b.Xattrs):
		return "xattrs"
	}
	return ""
}
