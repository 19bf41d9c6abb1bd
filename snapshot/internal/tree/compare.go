package tree

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
)

// CompareSeal compares a seal with a directory in both directions, and calls report for each difference. It returns an
// error of class errdefs.ErrDataLoss if the directory is missing. It reads both once, in the order of their paths, so
// that its memory depends only on the number of hard links, not of entries.
func CompareSeal(ctx context.Context, path, dir string, report func(path, what string)) error {
	sealed, err := OpenSeal(ctx, path)
	if err != nil {
		return err
	}
	root, err := nodes.OpenTree(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("directory %s: missing: %w", dir, errdefs.ErrDataLoss)
		}
		return err
	}
	defer root.Close()
	c := comparison{sealed: sealed.Cursor(), report: report, inodes: newInodes()}
	if err := c.next(); err != nil {
		return err
	}
	if err := Walk(ctx, root, c.visit); err != nil {
		return err
	}
	return c.skipTo("", true)
}

// comparison walks a seal and a directory tree side by side.
type comparison struct {
	sealed *Cursor
	want   *entry.Entry // the next entry of the seal, nil at its end
	report func(path, what string)
	inodes *inodes
}

// next advances to the next entry of the seal that should exist on disk; entries of type Link do not.
func (c *comparison) next() (err error) {
	for {
		c.want, err = c.sealed.Next()
		if errors.Is(err, io.EOF) {
			c.want = nil
			return nil
		}
		if err != nil || c.want.Type != entry.Link {
			return err
		}
	}
}

// skipTo reports as missing the entries of the seal before a path, or all remaining ones if end is true.
func (c *comparison) skipTo(path string, end bool) error {
	for c.want != nil && (end || entry.ComparePaths(c.want.Path, path) < 0) {
		c.report(c.want.Path, "missing")
		if err := c.next(); err != nil {
			return err
		}
	}
	return nil
}

// visit compares one entry of the directory tree with the seal.
func (c *comparison) visit(have *entry.Entry, id InodeID) error {
	if err := c.skipTo(have.Path, false); err != nil {
		return err
	}
	if c.want == nil || c.want.Path != have.Path {
		c.report(have.Path, "added: not in the seal")
		return nil
	}
	what := ""
	if Differ(c.want, have) {
		what = difference(c.want, have)
	} else if have.Type != entry.Whiteout && !c.inodes.agree(c.want, id) {
		what = "other hard links"
	}
	if what != "" {
		c.report(have.Path, what)
	}
	return c.next()
}

// inodes records, for each inode with several names that was seen, its group of hard links in the seal. It stores
// hashes of the names of groups, because the names may be long.
type inodes struct {
	seed  maphash.Seed
	group map[InodeID]uint64
	sole  map[InodeID]struct{} // inodes for which the seal has no group
}

func newInodes() *inodes {
	return &inodes{maphash.MakeSeed(), map[InodeID]uint64{}, map[InodeID]struct{}{}}
}

// agree reports whether all names of the inode that were seen so far, including that of want, are in one group of hard
// links of the seal. The name of a group is its first path.
func (n *inodes) agree(want *entry.Entry, id InodeID) bool {
	if id == (InodeID{}) {
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
		n.sole[id] = struct{}{} // its other names are outside the directory
		return true
	}
	n.group[id] = maphash.String(n.seed, want.Inode)
	return want.Inode == want.Path
}

// Differ reports whether two entries differ in type, attributes or content. It compares neither paths nor groups of
// hard links.
func Differ(a, b *entry.Entry) bool {
	if a.Type != b.Type {
		return true
	}
	return a.Type != entry.Whiteout && // a whiteout only has to exist
		(a.Mode != b.Mode && a.Type != entry.Symlink || a.UID != b.UID || a.GID != b.GID ||
			a.Sec != b.Sec || a.Nsec != b.Nsec || a.Size != b.Size && a.Type == entry.File || a.Hash != b.Hash ||
			a.Target != b.Target || a.Rdev != b.Rdev || a.Opaque != b.Opaque || !maps.Equal(a.Xattrs, b.Xattrs))
}

// difference returns text about all attributes in which two entries differ, the most important ones first. want is the
// entry of the seal.
func difference(want, have *entry.Entry) string {
	if want.Type != have.Type {
		return fmt.Sprintf("a %s instead of a %s", have.Type, want.Type)
	}
	var what []string
	add := func(differs bool, text string, values ...any) {
		if differs {
			what = append(what, fmt.Sprintf(text, values...))
		}
	}
	resized := want.Size != have.Size && want.Type == entry.File
	add(resized, "%d bytes instead of %d", have.Size, want.Size)
	add(want.Hash != have.Hash && !resized, "other content")
	add(want.Target != have.Target, "target %.100q instead of %.100q", have.Target, want.Target)
	add(want.Rdev != have.Rdev, "another device number")
	add(want.Mode != have.Mode && want.Type != entry.Symlink, "mode %04o instead of %04o", have.Mode, want.Mode)
	add(want.UID != have.UID || want.GID != have.GID, "owner %d:%d instead of %d:%d",
		have.UID, have.GID, want.UID, want.GID)
	add(want.Opaque != have.Opaque, "another opaque mark")
	add(!maps.Equal(want.Xattrs, have.Xattrs), "other xattrs")
	add(want.Sec != have.Sec || want.Nsec != have.Nsec, "time %s instead of %s", timeOf(have), timeOf(want))
	return strings.Join(what, ", ")
}

func timeOf(e *entry.Entry) string { return time.Unix(e.Sec, e.Nsec).UTC().Format(time.RFC3339Nano) }
