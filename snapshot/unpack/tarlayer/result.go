package tarlayer

// Result is what a layer became.
type Result struct {
	// Count is the number of entries, which Each visits.
	Count int
	// Size is what the layer takes on disk in bytes: contents in units of 4 KiB, and 4 KiB for each directory. Every
	// inode counts once. It is computed from the entries, so that it does not depend on the file system.
	Size int64
	// Inodes is the number of inodes on disk, the root directory and whiteouts included.
	Inodes int64
	// Empty reports that the layer has nothing but, perhaps, attributes of the root directory.
	Empty bool
	// HasRootEntry reports that the tar has an entry for the root directory itself.
	HasRootEntry bool
	// NeedsFixup reports that a part of the layer depends on its parent: an implied directory other than the root, or
	// a Link.
	NeedsFixup bool
	// Ordered reports that the result above a parent depends on the order of the entries, which Steps returns.
	Ordered bool
	// Whiteouts reports that there are whiteouts or opaque directories.
	Whiteouts bool
	// OpaqueRoot reports that everything in the layers below is hidden.
	OpaqueRoot bool

	root  *Node
	order *order
}
