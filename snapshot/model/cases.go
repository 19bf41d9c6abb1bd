package model

// Case is something that came up while layers were applied. Generators count cases, and comparisons with other
// programs look up in which cases these differ.
type Case string

// Hard links to files of the layers below.
const (
	LowerLink     Case = "a hard link to a file of the layers below"
	LinkedGone    Case = "a hard link to a lower file of which the layer then takes the name away"
	LinkGone      Case = "a hard link to a lower file that the layer then takes away itself"
	BelowLink     Case = "a path through a hard link to the layers below"
	MarkerBelow   Case = "a whiteout below a hard link to the layers below"
	LinkBehind    Case = "a hard link to a lower file behind a symlink of the layers below"
	LinkOfLink    Case = "a hard link to a hard link to the layers below"
	LinkToNothing Case = "a hard link to nothing"
)

// Cases that other programs read differently, or refuse.
const (
	LinkHeader    Case = "the header of a hard link changes the inode"
	LowerSymlink  Case = "a path through a symlink of the layers below"
	Loop          Case = "a path through a loop of symlinks"
	ImpliedDir    Case = "a directory without an entry"
	BlockedDir    Case = "a directory in place of a file on the way to an entry"
	Replaced      Case = "an entry in place of another one of its layer"
	DirOverGone   Case = "a directory where its layer took one away, or had a whiteout"
	MadeAnew      Case = "a whiteout of a directory that the layer implies"
	OwnMarker     Case = "a whiteout of a name that the layer has"
	IdleMarker    Case = "a whiteout of nothing"
	BlockedMarker Case = "a whiteout in a place that is missing or no directory"
	OpaqueRoot    Case = "an opaque marker in the root"
	Device        Case = "a character device 0:0"
	MetaMarker    Case = "a name that begins with .wh..wh."
	MarkerDir     Case = "a directory with the name of a whiteout"
	NoName        Case = "an entry without a name, or the root as a file"
	Root          Case = "an entry of the root directory"
	NoXattr       Case = "an xattr that its file cannot have"
	OddOwner      Case = "a negative owner"
)
