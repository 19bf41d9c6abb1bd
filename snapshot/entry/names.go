package entry

import (
	"encoding/binary"
	"strings"
)

// Markers are the names with which a tar removes entries of the layers below: ".wh.NAME" and ".wh..wh..opq". Such
// a name is a marker only as the last component of an entry's path. As a directory on the way to an entry it is an
// ordinary name, unless AUFS reserves it. On file systems without extended attributes, an inode with the name
// OpaqueMarker also marks an opaque directory on disk.
const (
	WhiteoutPrefix = ".wh."         // begins the name of a whiteout
	OpaqueMarker   = ".wh..wh..opq" // makes its directory opaque
	AUFSPrefix     = ".wh..wh."     // begins the names that AUFS reserves
)

// Reserved reports whether a path has a component that AUFS reserves, such as OpaqueMarker. No entry of a layer gets
// such a name on disk, and the content of a directory with such a name is not part of a layer.
func Reserved(path string) bool {
	return strings.HasPrefix(path, AUFSPrefix) || strings.Contains(path, "/"+AUFSPrefix)
}

// Names of the extended attributes that overlay keeps for itself. Mounts with the option userxattr use the user prefix.
const (
	TrustedOverlay = "trusted.overlay."
	UserOverlay    = "user.overlay."
	// OpaqueAttr, after the prefix and with the value "y", marks an opaque directory.
	OpaqueAttr = "opaque"
	// OriginAttr, after the prefix and with an empty value, makes overlay look for whiteouts in a directory that
	// no directory below merges with.
	OriginAttr = "origin"
)

// The extended attributes of POSIX ACLs.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

// KeepsXattr reports whether an extended attribute of a path of type t is part of a layer. It excludes overlay's own
// attributes, the labels and measurements of the machine that made the layer, and namespaces that no Linux file system
// has.
func KeepsXattr(name string, t Type) bool {
	switch name {
	case "security.selinux", "security.ima", "security.evm":
		return false
	case ACLAccess:
		return t != Symlink
	case ACLDefault:
		return t == Dir
	}
	switch {
	case strings.HasPrefix(name, TrustedOverlay), strings.HasPrefix(name, UserOverlay):
		return false
	case strings.HasPrefix(name, "user."):
		return t == Dir || t == File || t == Link // the kernel allows it nowhere else
	}
	return strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "security.")
}

// CapabilityAttr is the extended attribute that holds a file's capabilities.
const CapabilityAttr = "security.capability"

// CapabilityRoot returns the root user to whom file capabilities of revision 3 are bound. ok is false for values of
// other revisions.
func CapabilityRoot(value string) (uid uint32, ok bool) {
	const size, revision = 24, 3 // linux/capability.h: vfs_ns_cap_data
	if len(value) != size || value[3] != revision {
		return 0, false
	}
	return binary.LittleEndian.Uint32([]byte(value)[size-4:]), true
}
