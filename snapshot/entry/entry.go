// Package entry is the vocabulary of layers: one path with its attributes, and the names that have a meaning of their
// own.
//
// It owns nothing.
//
// Its invariant: an Entry says everything about a path that a layer's digest covers, and nothing else.
//
// The surprising rule: Link and Whiteout are types as well. A Link names a file that only a lower layer has; a Whiteout
// removes a path of the layers below.
package entry

import (
	"maps"
	"strings"

	"golang.org/x/sys/unix"
)

// Type is the type of a path of an unpacked layer.
type Type uint8

// The types of entries. A walk through an ordinary tree returns no Whiteout and no Link.
const (
	Dir Type = iota + 1
	File
	Symlink
	Fifo
	Char
	Block
	Whiteout // removes the path from the layers below; char 0:0 on disk
	Link     // a hard link to a path that only a lower layer has; nothing on disk; its header's attributes are kept
)

var typeNames = [...]string{
	Dir: "dir", File: "file", Symlink: "symlink", Fifo: "fifo", Char: "char", Block: "block", Whiteout: "whiteout",
	Link: "link",
}

// String returns the name of the type in seals.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return "unknown"
}

// TypeNamed returns the type with a name. ok is false if there is none.
func TypeNamed(name []byte) (t Type, ok bool) {
	for t := Dir; t <= Link; t++ {
		if string(name) == typeNames[t] {
			return t, true
		}
	}
	return 0, false
}

// Entry is one path of an unpacked layer, as it is on disk after the extraction.
type Entry struct {
	Path string // clean and relative, "." for the root directory itself; bytes as the tar had them
	// Target is the target of a Symlink, or the clean relative path that a Link names.
	Target string
	// Inode is the first path, in byte order, of an inode with several names in this layer. It is empty for an inode
	// with one name.
	Inode string
	// Xattrs are the extended attributes, without overlay's own. It must not be changed, since entries may share a map.
	Xattrs map[string]string
	// Sec and Nsec are the modification time.
	Sec  int64
	Nsec int64
	Size int64  // of a file, bytes
	Rdev uint64 // of Char and Block, as Device returns it
	// Seq is the position in the tar, from 1, of the entry that made the path; 0 for implied directories.
	Seq int
	// Hash is XXH3-128 of a file's content.
	Hash [16]byte
	Mode uint32 // permission, setuid, setgid and sticky bits (07777)
	UID  uint32
	GID  uint32
	Type Type
	// Implied directories have no entry in the tar. Their attributes depend on the layers below, and there the path may
	// even be something else.
	Implied bool
	// Opaque directories hide what the layers below have in them. An opaque Whiteout is a device in the tar,
	// which also replaced what the layer itself had at the path before. On disk it is like any other.
	Opaque bool
}

// Device returns the Rdev of a device with these numbers.
func Device(major, minor uint32) uint64 { return unix.Mkdev(major, minor) }

// DropXattr removes an extended attribute from the entry. It copies the map, which other entries may share.
func (e *Entry) DropXattr(name string) {
	rest := maps.Clone(e.Xattrs)
	if delete(rest, name); len(rest) == 0 {
		rest = nil
	}
	e.Xattrs = rest
}

// ComparePaths compares paths in the order of lists: by bytes, the root first.
func ComparePaths(a, b string) int {
	if a == "." || b == "." {
		switch {
		case a == b:
			return 0
		case a == ".":
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}
