package tarlayer

import (
	"archive/tar"
	"encoding/binary"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

const (
	symlinkMode = 0o777 // which Linux reports for every symlink
	setuid      = 0o4000
	xattrRecord = "SCHILY.xattr."
)

// inode returns the inode that a header describes: type and attributes as they will be on disk.
func (x *reader) inode(hdr *tar.Header) (*Inode, error) {
	ino := &Inode{}
	if err := x.setType(hdr, ino); err != nil {
		return nil, err
	}
	ino.Mode = uint32(hdr.Mode) & 0o7777
	if ino.Type == entry.Symlink {
		ino.Mode = symlinkMode
	}
	var uidOK, gidOK bool
	ino.UID, uidOK = ownerID(int64(hdr.Uid))
	ino.GID, gidOK = ownerID(int64(hdr.Gid))
	if !uidOK || !gidOK {
		return nil, invalid(hdr.Name, "owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	ino.Sec, ino.Nsec = hdr.ModTime.Unix(), uint32(hdr.ModTime.Nanosecond())
	if x.opts.Unprivileged {
		ino.UID, ino.GID = x.opts.UID, x.opts.GID
		ino.Mode &^= setuid
	}
	if ino.omitted {
		return ino, nil
	}
	if err := x.checkOwner(hdr.Name, ino); err != nil {
		return nil, err
	}
	return ino, x.setXattrs(hdr, ino)
}

// ownerID returns the id that chown sets for an id of a header. ok is false if the id is out of range. Some archivers
// write ids with a sign: -2 for 4294967294. With -1 or 4294967295 chown changes nothing, so that the new inode stays
// root's.
func ownerID(id int64) (owner uint32, ok bool) {
	switch {
	case id == -1, id == math.MaxUint32:
		return 0, true
	case id < math.MinInt32, id > math.MaxUint32:
		return 0, false
	}
	return uint32(id), true
}

// setType sets the type and what only this type has.
func (x *reader) setType(hdr *tar.Header, ino *Inode) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		ino.Type, ino.Size = entry.File, hdr.Size
	case tar.TypeDir:
		ino.Type = entry.Dir
	case tar.TypeSymlink:
		ino.Type, ino.Target = entry.Symlink, strings.Clone(hdr.Linkname)
		if n := len(hdr.Linkname); n == 0 || n > x.limits.Path {
			return invalid(hdr.Name, "symlink target of %d bytes", n)
		}
	case tar.TypeLink:
		ino.Type, ino.Target = entry.Link, path.Clean("/" + hdr.Linkname)[1:]
		switch {
		case ino.Target == "":
			return invalid(hdr.Name, "hard link to the root directory")
		case len(ino.Target) > x.limits.Path:
			return invalid(hdr.Name, "hard link to a path of %d bytes", len(ino.Target))
		case strings.HasPrefix(path.Base(ino.Target), entry.WhiteoutPrefix), entry.Reserved(ino.Target):
			return invalid(hdr.Name, "hard link to a whiteout")
		}
	case tar.TypeFifo:
		ino.Type = entry.Fifo
	case tar.TypeChar, tar.TypeBlock:
		return x.setDevice(hdr, ino)
	default:
		return invalid(hdr.Name, "unknown type %q", hdr.Typeflag)
	}
	return nil
}

// setDevice sets the type and number of a device. It refuses numbers that the kernel would truncate to those of another
// device. The character device 0:0 is overlay's whiteout, so that it is not made and its name is absent.
func (x *reader) setDevice(hdr *tar.Header, ino *Inode) error {
	const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1
	major, minor := hdr.Devmajor, hdr.Devminor
	if major < 0 || major > maxMajor || minor < 0 || minor > maxMinor {
		return invalid(hdr.Name, "device number %d:%d is out of range", major, minor)
	}
	ino.Type, ino.Rdev = entry.Block, entry.Device(uint32(major), uint32(minor))
	if hdr.Typeflag == tar.TypeChar {
		ino.Type = entry.Char
	}
	ino.omitted = x.opts.Unprivileged || x.opts.Confined || ino.Type == entry.Char && ino.Rdev == 0
	return nil
}

// setXattrs sets the extended attributes that are part of the layer and that this process may write.
func (x *reader) setXattrs(hdr *tar.Header, ino *Inode) error {
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !entry.KeepsXattr(name, ino.Type) {
			continue
		}
		if !x.permitted(name) {
			continue
		}
		if len(name) > maxName {
			return invalid(hdr.Name, "xattr name of %d bytes", len(name))
		}
		if len(value) > x.limits.Xattr {
			return invalid(hdr.Name, "xattr %q of %d bytes, more than %d", name, len(value), x.limits.Xattr)
		}
		if keep, err := x.checkXattr(hdr.Name, name, value); err != nil {
			return err
		} else if !keep {
			continue
		}
		if err := x.countMetadata(hdr.Name, len(name)+len(value)); err != nil {
			return err
		}
		if x.w.LacksXattr(name) {
			continue
		}
		if ino.Xattrs == nil {
			ino.Xattrs = make(map[string]string)
		}
		ino.Xattrs[name] = value
	}
	if ino.Xattrs == nil {
		return nil
	}
	return x.share(hdr.Name, ino)
}

// share gives the inode the map of another inode with the same attributes. Most inodes that have attributes have the
// same ones, and a map takes as much memory as the rest of an entry.
func (x *reader) share(name string, ino *Inode) error {
	key := make([]byte, 0, 64)
	for _, k := range slices.Sorted(maps.Keys(ino.Xattrs)) {
		for _, s := range [2]string{k, ino.Xattrs[k]} {
			key = append(binary.AppendUvarint(key, uint64(len(s))), s...)
		}
	}
	if same, ok := x.sharedXattrs[string(key)]; ok {
		ino.Xattrs = same
		return nil
	}
	own := make(map[string]string, len(ino.Xattrs)) // its strings do not keep a whole header in memory
	for k, v := range ino.Xattrs {
		own[strings.Clone(k)] = strings.Clone(v)
	}
	ino.Xattrs = own
	if x.sharedXattrs == nil {
		x.sharedXattrs = map[string]map[string]string{}
	}
	x.sharedXattrs[string(key)] = own
	return x.countStrings(name, 2*len(key)+xattrsMemory)
}
