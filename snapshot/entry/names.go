package entry

import (
	"encoding/binary"
	"strings"
)

// Markers are the names with which a tar removes what the layers below have: ".wh.NAME" and ".wh..wh..opq". A name of
// this form is a marker only where an entry ends with it. As a directory on the way to an entry it is an ordinary name,
// but for those of AUFS, one of which marks opaque directories on file systems without extended attributes.
const (
	WhiteoutPrefix = ".wh."         // of a whiteout
	OpaqueMarker   = ".wh..wh..opq" // of an opaque directory
	AUFSPrefix     = ".wh..wh."     // of names that AUFS reserves
)

// Reserved reports whether a path has a component that is never a name on disk: those of AUFS, and the marker of opaque
// directories among them.
func Reserved(path string) bool { return BelowAUFS(path) }

// BelowAUFS reports whether a directory lies in one of AUFS's own, whose content is not part of a layer.
func BelowAUFS(dir string) bool {
	return strings.HasPrefix(dir, AUFSPrefix) || strings.Contains(dir, "/"+AUFSPrefix)
}

// Names of the extended attributes that overlay keeps for itself. Mounts with the option userxattr use the user prefix.
const (
	TrustedOverlay = "trusted.overlay."
	UserOverlay    = "user.overlay."
	// OpaqueAttr after the prefix, with the value "y", marks an opaque directory.
	OpaqueAttr = "opaque"
	// OriginAttr after the prefix, empty, makes overlay look for whiteouts in a directory that nothing merges with.
	OriginAttr = "origin"
)

// The extended attributes of POSIX ACLs.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

// KeepsXattr reports whether an extended attribute of a path of type t is part of a layer. Not part of it are
// overlay's own attributes, labels and measurements of the machine that made the layer, and namespaces that no Linux
// file system has.
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

// CapabilityRoot returns the root user to whom file capabilities of revision 3 are bound. ok is false for values of other
// revisions.
func CapabilityRoot(value string) (uid uint32, ok bool) {
	const size, revision = 24, 3 // linux/capability.h: vfs_ns_cap_data
	if len(value) != size || value[3] != revision {
		return 0, false
	}
	return binary.LittleEndian.Uint32([]byte(value)[size-4:]), true
}
