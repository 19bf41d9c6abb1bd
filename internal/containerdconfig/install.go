package containerdconfig

import "github.com/tank-snapshotter/tank/internal/processor"

// Install describes how one containerd and one daemon of Tank work together.
type Install struct {
	// Root is the daemon's root, an absolute path.
	Root string
	// Address is the daemon's socket, an absolute path.
	Address string
	// ContainerdAddress is containerd's socket, if Tank reads blobs from containerd. "" if Content is true.
	ContainerdAddress string
	// Content is true if Tank is containerd's content store.
	Content bool
	// Directory is true if the root is in directory mode: snapshots are copies and no overlay mounts.
	Directory bool
	// UserNS is true if both processes run inside a user namespace.
	UserNS bool
	// SkipKnownBlobs is true if containerd does not download the blobs of layers that Tank has unpacked.
	SkipKnownBlobs bool
	// Processors are the stream processors in Tank's own config. nil: Tank runs those of containerd's config.
	Processors map[string]processor.Processor
}

// The capabilities of a snapshotter that containerd knows.
const (
	rebase   = "rebase"    // layers can be unpacked in parallel, without their parents
	remapIDs = "remap-ids" // mounts can remap owners, so containerd need not change the owner of each file
)

// capabilities returns the capabilities that the drop-in announces.
//
// With rebase, containerd unpacks each layer into a directory of its own, with overlay's whiteouts for the files that
// the layer deletes. Inside a user namespace containerd can't make whiteouts, and the copies of directory mode do not
// apply them.
//
// Inside a user namespace, nobody can remap the owners of a file system that was mounted outside. In
// directory mode Tank could serve remapped mounts, but a container would not start if the root's file system
// has no such mounts (ADR 8).
func (in Install) capabilities() []string {
	if in.Directory || in.UserNS {
		return []string{}
	}
	return []string{rebase, remapIDs}
}
