// Package metadata records what a root holds and who holds it.
//
// It owns one file, metadata.db (bbolt), and no directory beside it. Blobs, layers, rootfs and snapshots are nodes;
// holders are names that keep nodes alive; images say which nodes a reference stands for.
//
// Its invariant (I5 in docs/on-disk.md): a node's record lives exactly as long as it has a holder. A transaction that
// would leave a record without a holder, or a hold without a record, fails and changes nothing.
//
// The surprising rule: releasing the last hold deletes the record, in the same transaction. Nobody deletes a node;
// the bytes become garbage and the packages that own directories sweep them.
//
// No transaction may be open while a callback of somebody else runs or a stream is sent: containerd deletes inside a
// listing, and a read transaction that stays open keeps the writer from growing the file. So listings are pages.
package metadata

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Holder is a name that keeps nodes alive.
type Holder string

// Containerd holds what the first containerd of a root knows of; see ContainerdHolder for others.
const Containerd Holder = "containerd"

// ImageHolder holds the closure of the image recorded as ref.
func ImageHolder(ref string) Holder { return Holder("image/" + ref) }

// PullHolder holds what an unfinished pull of ref has gathered. It lapses; see Tx.Renew.
func PullHolder(ref string) Holder { return Holder("pull/" + ref) }

// SnapshotHolder holds the layer and the fix-up that the snapshot key stands on.
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

// FixupKey is the key of the fix-up that these facts ask for; facts is the digest over diff ID and parent facts.
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
	// Durable says that the directory's content reached the disk; until then it is provisional and is compared with
	// its seal when the root was not closed cleanly.
	Durable bool `json:"durable,omitempty"`
	// Empty layers contribute no lower directory.
	Empty bool `json:"empty,omitempty"`
	// Root says that the layer's tar has an entry for the root directory itself.
	HasRootEntry bool `json:"root,omitempty"`
	// OpaqueRoot says that the layer hides all that is below it: overlay ignores the marker on a root directory.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// Needs says that a part of the layer depends on its parent, so that a fix-up may be due.
	NeedsFixup bool `json:"needs,omitempty"`
	// Ordered means that the layer's result above a parent depends on the order of its tar, which is kept beside the
	// directory, and that the layer may be invalid above some parents.
	Ordered bool `json:"ordered,omitempty"`
	// Whiteouts says that the directory holds whiteouts or opaque markers, so that it can't be shown without overlay.
	Whiteouts bool `json:"whiteouts,omitempty"`
	// Plain says that some of them are not overlay's, because the file system refused those: overlay must not show the
	// directory.
	PlainMarks bool `json:"plain,omitempty"`
	// Dropped lists, for people, the extended attributes of the tar that the file system does not have.
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

// SnapshotKind is what a snapshot is: active, view or committed.
type SnapshotKind string

// The kinds of snapshots, by containerd's names.
const (
	Active    SnapshotKind = "active"
	View      SnapshotKind = "view"
	Committed SnapshotKind = "committed"
)

// Snapshot is one snapshot, by containerd's words.
type Snapshot struct {
	Key     string            `json:"key"`
	Kind    SnapshotKind      `json:"kind"`
	Parent  string            `json:"parent,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	// Dir names the snapshot's own directory under snapshots/; empty once a layer took its place.
	Dir string `json:"dir,omitempty"`
	// Whole says that Dir holds everything that the snapshot shows, and not what it adds to its parent: what lies below does not
	// count. Snapshots of directory mode are made so.
	FullCopy bool `json:"whole,omitempty"`
	// Remapped says that containerd changed the owners of everything for a user namespace, in the snapshot or in one below it.
	Remapped bool `json:"remapped,omitempty"`
	// Layer is the key of the layer that stands for the snapshot's content; empty when that is Dir.
	Layer string `json:"layer,omitempty"`
	// Fixup is the state of the fix-up above Layer: "" not looked at yet, NoFixup, or the key of its layer record.
	Fixup string `json:"fixup,omitempty"`
	// Root is the key of the layer record that a view puts on top for the root directory's attributes, if it needs one.
	ViewRoot string `json:"root,omitempty"`
	// Size and Inodes are the usage of a committed snapshot.
	Size   int64 `json:"size,omitempty"`
	Inodes int64 `json:"inodes,omitempty"`
}

// NoFixup in Snapshot.Fixup says that the layer needs nothing above this parent.
const NoFixup = "none"

// Image is what a reference was pulled as. Its holder is ImageHolder(Ref).
type Image struct {
	// Ref is the normalized reference, or <reference>@<digest> for an image that its tag has left behind.
	Ref string `json:"ref"`
	// Target is what the reference resolved to: an index or a manifest.
	Target ocispec.Descriptor `json:"target"`
	// Platforms are the pulled platforms, the latest first.
	Platforms []Platform `json:"platforms"`
	// Untagged images are kept until gc, because somebody may be using their rootfs.
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
	// Asked are the platforms for which a pull took this one, although it is not exactly what was asked for.
	RequestedAs []string `json:"asked,omitempty"`
	// Rootfs says whether a rootfs was assembled for it.
	Rootfs bool `json:"rootfs,omitempty"`
	// Exact is true if the documents were compared name by name when the image was recorded (ADR 24), which older
	// versions did not do.
	Exact bool `json:"exact,omitempty"`
}
