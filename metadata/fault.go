package metadata

import "github.com/containerd/errdefs"

// Fault is one thing that is wrong with a root, as the Check functions of metadata, content, snapshot and tank find it.
// It is an error of class errdefs.ErrDataLoss.
type Fault struct {
	Damage Damage
	// Node is the record whose bytes are damaged. The zero value: the fault concerns the database or an image.
	Node Node
	// Image is the reference of the damaged image. Empty: the fault does not concern one image.
	Image string
	// Mend is what would mend the fault. The zero value is MendNothing.
	Mend Mend
	// Err has the text of the fault, in the form "noun identifier: cause".
	Err error
}

// Damage is what is wrong.
type Damage string

// The kinds of damage.
const (
	DamagedRecords   Damage = "records"   // pages of the database, or records that contradict each other
	MissingBytes     Damage = "missing"   // a recorded file or directory does not exist
	DifferentBytes   Damage = "different" // a file or directory differs from its digest or seal
	UnusableDocument Damage = "document"  // an image's manifest or config would be refused in a pull
)

// Mend is what would mend a fault.
type Mend string

// The ways to mend a fault.
const (
	MendNothing  Mend = ""         // only the process that wrote the bytes could write them again
	MendRecords  Mend = "records"  // make the database again from what can be read of it and from the directories
	MendDownload Mend = "download" // fetch the blob again from a registry
	MendUnpack   Mend = "unpack"   // unpack the layer again from its blob, or build the fix-up again
	MendAssemble Mend = "assemble" // assemble the rootfs again from its layers
	MendRecord   Mend = "record"   // write the snapshot's durable record again, as each opening of the root does
)

// Error returns the text of the fault.
func (f Fault) Error() string { return f.Err.Error() }

// Unwrap returns the cause, and the class of every fault.
func (f Fault) Unwrap() []error { return []error{f.Err, errdefs.ErrDataLoss} }

// Subject returns what is damaged and its name: the kind and key of the node, or "image" and the reference, or
// "metadata" and no name for the database.
func (f Fault) Subject() (what, name string) {
	switch {
	case f.Node != Node{}:
		return string(f.Node.Kind), f.Node.Key
	case f.Image != "":
		return "image", f.Image
	}
	return "metadata", ""
}
