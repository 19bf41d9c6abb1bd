package metadata

import (
	"cmp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Holder is a name that keeps nodes alive.
type Holder string

// Containerd holds what the first containerd of a root knows. ContainerdHolder names the others.
const Containerd Holder = "containerd"

// ImageHolder holds the closure of the image recorded as ref.
func ImageHolder(ref string) Holder { return Holder("image/" + ref) }

// PullHolder holds what an unfinished pull of ref has downloaded and unpacked. It lapses; see Tx.Lapse.
func PullHolder(ref string) Holder { return Holder("pull/" + ref) }

// SnapshotHolder holds the layer and the fix-up that stand for the content of the snapshot key.
func SnapshotHolder(key string) Holder { return Holder("snapshot/" + key) }

// HolderKind is what a holder's name begins with.
type HolderKind string

// The kinds of holders.
const (
	HolderImage      HolderKind = "image"      // named by the reference
	HolderPull       HolderKind = "pull"       // named by the reference
	HolderSnapshot   HolderKind = "snapshot"   // named by the snapshot's key
	HolderContainerd HolderKind = "containerd" // named by the ID of its binding; the first one has no name
)

// Split returns the kind of a holder and its name within the kind. The kind is none of the constants above for a name
// that no function of this package made.
func (h Holder) Split() (kind HolderKind, name string) {
	prefix, name, _ := strings.Cut(string(h), "/")
	return HolderKind(prefix), name
}

// Kind is a kind of node.
type Kind string

// The kinds of nodes.
const (
	KindBlob     Kind = "blob"
	KindLayer    Kind = "layer"
	KindRootfs   Kind = "rootfs"
	KindSnapshot Kind = "snapshot"
)

// Node names one record: a blob by digest, a layer or a fix-up by LayerKey or FixupKey, a rootfs by manifest digest,
// a snapshot by key.
type Node struct {
	Kind Kind
	Key  string
}

// BlobNode names a blob.
func BlobNode(d digest.Digest) Node { return Node{KindBlob, d.String()} }

// LayerNode names a layer or a fix-up.
func LayerNode(key string) Node { return Node{KindLayer, key} }

// RootfsNode names the rootfs of a manifest.
func RootfsNode(manifest digest.Digest) Node { return Node{KindRootfs, manifest.String()} }

// SnapshotNode names a snapshot.
func SnapshotNode(key string) Node { return Node{KindSnapshot, key} }

// LayerKey is the key of the layer with this diff ID.
func LayerKey(diffID digest.Digest) string { return diffID.String() }

// FixupKey is the key of a fix-up. facts is the digest of the layer's diff ID and of those properties of the parent
// that the fix-up depends on.
func FixupKey(facts digest.Digest) string { return "fixup/" + facts.String() }

// Blob is a verified blob under blobs/.
type Blob struct {
	Digest  digest.Digest     `json:"digest"`
	Size    int64             `json:"size"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Layer is an unpacked layer or a fix-up under layers/<Dir>.
type Layer struct {
	Key    string        `json:"key"`
	Dir    string        `json:"dir"`              // name of the directory under layers/
	DiffID digest.Digest `json:"diffID,omitempty"` // of a layer; empty for a fix-up
	Size   int64         `json:"size"`             // bytes, as Usage reports them
	Inodes int64         `json:"inodes"`
	// Durable is true once the directory's content reached the disk. Until then it is provisional: a process that did
	// not write it compares it with its seal before it is used.
	Durable bool `json:"durable,omitempty"`
	// Empty layers add no lower directory to a mount.
	Empty bool `json:"empty,omitempty"`
	// HasRootEntry is true if the layer's tar has an entry for the root directory itself.
	HasRootEntry bool `json:"root,omitempty"`
	// OpaqueRoot is true if the layer hides everything below it. It is a field because overlay ignores an opaque
	// marker on a root directory.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// NeedsFixup is true if a part of the layer depends on its parent, so that it may need a fix-up.
	NeedsFixup bool `json:"needs,omitempty"`
	// Ordered is true if what the layer gives above a parent depends on the order of its tar. The order is kept
	// beside the directory. Such a layer may be invalid above some parents.
	Ordered bool `json:"ordered,omitempty"`
	// Whiteouts is true if the directory holds whiteouts or opaque markers, so that it can be shown only through
	// overlay.
	Whiteouts bool `json:"whiteouts,omitempty"`
	// PlainMarks is true if some of those markers are ordinary files, because the file system refused overlay's.
	// Overlay must not show the directory.
	PlainMarks bool `json:"plain,omitempty"`
	// DroppedXattrs lists, as a text for people, the extended attributes of the tar that the file system refused.
	DroppedXattrs string    `json:"dropped,omitempty"`
	Created       time.Time `json:"created"`
}

// Rootfs is an assembled root filesystem under rootfs/.
type Rootfs struct {
	Manifest digest.Digest `json:"manifest"`
	Size     int64         `json:"size"`
	Inodes   int64         `json:"inodes"`
	Durable  bool          `json:"durable,omitempty"`
	Created  time.Time     `json:"created"`
}

// SnapshotKind is the kind of a snapshot: active, view or committed.
type SnapshotKind string

// The kinds of snapshots, by containerd's names.
const (
	Active    SnapshotKind = "active"
	View      SnapshotKind = "view"
	Committed SnapshotKind = "committed"
)

// Snapshot is one snapshot of containerd's.
type Snapshot struct {
	Key     string            `json:"key"`
	Kind    SnapshotKind      `json:"kind"`
	Parent  string            `json:"parent,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	// Dir is the name of the directory under snapshots/ that has the snapshot's content. Empty: its content is that of
	// Layer, or it is a view.
	Dir string `json:"dir,omitempty"`
	// RecordDir is the name of the directory under snapshots/ that has the durable record of a snapshot without Dir,
	// and nothing else of it. Empty: that is in Dir, or an older version made the snapshot and it has none yet.
	RecordDir string `json:"recordDir,omitempty"`
	// FullCopy is true if Dir holds everything that the snapshot shows, and not only what it adds to its parent.
	// Directory mode makes such snapshots.
	FullCopy bool `json:"whole,omitempty"`
	// Remapped is true if containerd changed the owners of all files for a user namespace, in this snapshot or in one
	// of its ancestors.
	Remapped bool `json:"remapped,omitempty"`
	// Layer is the key of the layer that stands for the snapshot's content; empty when that is Dir.
	Layer string `json:"layer,omitempty"`
	// Fixup is the state of the fix-up above Layer: "" not examined yet, NoFixup, or the key of its layer record.
	Fixup string `json:"fixup,omitempty"`
	// ViewRoot is the key of the layer record that a view is mounted with on top, for the attributes of the root
	// directory. Empty: the view needs none.
	ViewRoot string `json:"root,omitempty"`
	// Size and Inodes are the usage of a committed snapshot.
	Size   int64 `json:"size,omitempty"`
	Inodes int64 `json:"inodes,omitempty"`
}

// Entry returns the name of the snapshot's directory under snapshots/, which has its durable record; "" if it has none.
func (s Snapshot) Entry() string { return cmp.Or(s.Dir, s.RecordDir) }

// NoFixup in Snapshot.Fixup means that the layer needs no fix-up above this parent.
const NoFixup = "none"

// Image is the record of a pulled reference. Its holder is ImageHolder(Ref).
type Image struct {
	// Ref is the normalized reference, or <reference>@<digest> for an image whose tag points elsewhere now.
	Ref string `json:"ref"`
	// Target is what the reference resolved to: an index or a manifest.
	Target ocispec.Descriptor `json:"target"`
	// Platforms are the pulled platforms, the latest first.
	Platforms []Platform `json:"platforms"`
	// Untagged images are kept until gc, because a program may be using their rootfs.
	Untagged bool      `json:"untagged,omitempty"`
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
}

// Platform is one platform of an image, with its closure.
type Platform struct {
	Platform ocispec.Platform     `json:"platform"`
	Manifest ocispec.Descriptor   `json:"manifest"`
	Config   ocispec.Descriptor   `json:"config"`
	Layers   []ocispec.Descriptor `json:"layers"`
	DiffIDs  []digest.Digest      `json:"diffIDs"`
	// RequestedAs are the platforms for which a pull chose this one although it is not exactly the requested one.
	RequestedAs []string `json:"asked,omitempty"`
	// Rootfs is true if a rootfs was assembled for it.
	Rootfs bool `json:"rootfs,omitempty"`
	// Exact is true if the JSON of manifest and config was checked to have only one reading when the image was recorded
	// (ADR 24). Older versions did not check that.
	Exact bool `json:"exact,omitempty"`
}
