package tarlayer

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// permitted reports whether this process can write an attribute that is part of a layer.
func (x *reader) permitted(name string) bool {
	switch {
	case x.opts.Unprivileged:
		return !strings.HasPrefix(name, "trusted.") && !strings.HasPrefix(name, "security.")
	case x.opts.Confined:
		return !strings.HasPrefix(name, "trusted.") &&
			(!strings.HasPrefix(name, "security.") || name == entry.CapabilityAttr)
	}
	return true
}

// checkOwner returns an error for ids that chown cannot set in this user namespace.
func (x *reader) checkOwner(name string, e *Inode) error {
	if !x.opts.UIDs.Has(e.UID) {
		return x.unmapped(name, "uid", e.UID)
	}
	if !x.opts.GIDs.Has(e.GID) {
		return x.unmapped(name, "gid", e.GID)
	}
	return nil
}

// unmapped returns the error for an id that the namespace does not map. It does not have the class ErrInvalidLayer: in
// another namespace the layer can be unpacked.
func (x *reader) unmapped(name, kind string, id uint32) error {
	m := x.opts.UIDs
	if kind == "gid" {
		m = x.opts.GIDs
	}
	err := fmt.Errorf("%s: %s %d has no place in this user namespace, which maps %s (give its user more ids "+
		"in /etc/sub%s): %w", entryName(name), kind, id, m, kind, errdefs.ErrFailedPrecondition)
	return cause.Mark(err, cause.Mapping, "")
}

// checkXattr checks the ids in an attribute's value. keep is false if the attribute is to be left out, because an
// ordinary user cannot set it. Malformed values are left to the kernel, except for an unknown version of an ACL: there
// the kernel returns the same error as a file system without ACLs.
func (x *reader) checkXattr(name, attr, value string) (keep bool, err error) {
	if v, ok := aclVersion(attr, value); ok && v != aclVersionKnown {
		return false, invalid(name, "xattr %q: version %d", attr, v)
	}
	kind, id, ok := x.unmappedIn(attr, value)
	switch {
	case !ok:
		return true, nil
	case x.opts.Unprivileged:
		return false, nil
	}
	return false, x.unmapped(name, kind, id)
}

// unmappedIn returns the first id in an attribute's value that the namespace does not map.
func (x *reader) unmappedIn(attr, value string) (kind string, id uint32, found bool) {
	v := []byte(value)
	switch attr {
	case entry.ACLAccess, entry.ACLDefault:
		const header, size, user, group = 4, 8, 0x02, 0x08 // linux/posix_acl_xattr.h
		for at := header; at+size <= len(v); at += size {
			id = binary.LittleEndian.Uint32(v[at+4:])
			switch binary.LittleEndian.Uint16(v[at:]) {
			case user:
				kind, found = "uid", !x.opts.UIDs.Has(id)
			case group:
				kind, found = "gid", !x.opts.GIDs.Has(id)
			}
			if found {
				return kind, id, true
			}
		}
	case entry.CapabilityAttr:
		if root, ok := entry.CapabilityRoot(value); ok && !x.opts.UIDs.Has(root) {
			return "uid", root, true
		}
	}
	return "", 0, false
}

// aclVersionKnown is the only version of POSIX ACLs that Linux stores as extended attributes (linux/posix_acl_xattr.h).
const aclVersionKnown = 2

// aclVersion returns the version of a POSIX ACL. ok is false if the attribute is no ACL, or too short to have a
// version.
func aclVersion(attr, value string) (version uint32, ok bool) {
	if attr != entry.ACLAccess && attr != entry.ACLDefault || len(value) < 4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32([]byte(value[:4])), true
}
