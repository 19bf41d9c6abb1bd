package unpack

// Type is what lies at a path of an unpacked layer.
type Type string

// The types of entries. Whiteout and Link are not found in an ordinary tree.
const (
	Dir      Type = "dir"
	File     Type = "file"
	Symlink  Type = "symlink"
	Fifo     Type = "fifo"
	Char     Type = "char"
	Block    Type = "block"
	Whiteout Type = "whiteout" // removes the path from the layers below; char 0:0 on disk
	Link     Type = "link"     // a hard link to a path that only a lower layer has; nothing on disk; its header's attributes are kept
)

// Entry is one path of an unpacked layer, as it lies on disk once extraction is over.
type Entry struct {
	Path string // clean and relative, "." for the root directory itself; bytes as the tar had them
	Type Type
	Mode uint32 // permission, setuid, setgid and sticky bits (07777)
	UID  uint32
	GID  uint32
	// Sec and Nsec are the modification time.
	Sec  int64
	Nsec int64
	Size int64  // of a file, bytes
	Rdev uint64 // of Char and Block, as unix.Mkdev makes it
	// Target is where a Symlink points, or the clean relative path that a Link names.
	Target string
	// Xattrs are the extended attributes, without overlay's own.
	Xattrs map[string]string
	// Hash is XXH3-128 of a file's content.
	Hash [16]byte
	// Inode names the first path, in byte order, of an inode with several names in this layer; empty for a sole name.
	Inode string
	// Implied directories have no entry in the tar: their attributes, and what they are at all, depend on the parent.
	Implied bool
	// Opaque directories hide what the layers below have inside them.
	Opaque bool
	// Seq is the position in the tar of the entry that made it, from 1; 0 for implied directories.
	Seq int
}
