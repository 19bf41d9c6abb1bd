package unpack

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

const (
	symlinkMode = 0o777 // what Linux says of every symlink
	xattrRecord = "SCHILY.xattr."
	holeSize    = 4096
)

// inode makes an inode of a header: type and attributes as they will be on disk.
func (x *extractor) inode(hdr *tar.Header) (*inode, error) {
	ino := &inode{}
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
		ino.UID, ino.GID = x.uid, x.gid
		ino.Mode &^= unix.S_ISUID
	}
	if ino.omitted {
		return ino, nil
	}
	if err := x.checkOwner(hdr.Name, ino); err != nil {
		return nil, err
	}
	return ino, x.setXattrs(hdr, ino)
}

// ownerID is the id that chown sets for an id of a header; ok is false when there is none. Some archivers write ids
// with a sign: -2 for 4294967294. With -1 or 4294967295 chown changes nothing, so the new inode stays root's.
func ownerID(id int64) (owner uint32, ok bool) {
	switch {
	case id == -1, id == math.MaxUint32:
		return 0, true
	case id < math.MinInt32, id > math.MaxUint32:
		return 0, false
	}
	return uint32(id), true
}

func (x *extractor) setType(hdr *tar.Header, ino *inode) error {
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
		case strings.HasPrefix(path.Base(ino.Target), entry.WhiteoutPrefix), entry.BelowAUFS(ino.Target):
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

// setDevice refuses numbers that the kernel would cut: they could wrap around to those of another device. The character
// device 0:0 is overlay's whiteout, so that its name is absent.
func (x *extractor) setDevice(hdr *tar.Header, ino *inode) error {
	const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1
	major, minor := hdr.Devmajor, hdr.Devminor
	if major < 0 || major > maxMajor || minor < 0 || minor > maxMinor {
		return invalid(hdr.Name, "device number %d:%d is out of range", major, minor)
	}
	ino.Type, ino.Rdev = entry.Block, unix.Mkdev(uint32(major), uint32(minor))
	if hdr.Typeflag == tar.TypeChar {
		ino.Type = entry.Char
	}
	ino.omitted = x.opts.Unprivileged || x.opts.Confined || ino.Type == entry.Char && ino.Rdev == 0
	return nil
}

func (x *extractor) setXattrs(hdr *tar.Header, ino *inode) error {
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
		if err := x.keep(hdr.Name, len(name)+len(value)); err != nil {
			return err
		}
		if x.dropped.has(name) {
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

// share gives the inode the attributes of another one if they are the same: mostly all that have any have the same, and
// a map of one takes as much memory as the rest of an entry.
func (x *extractor) share(name string, ino *inode) error {
	key := make([]byte, 0, 64)
	for _, k := range slices.Sorted(maps.Keys(ino.Xattrs)) {
		for _, s := range [2]string{k, ino.Xattrs[k]} {
			key = append(binary.AppendUvarint(key, uint64(len(s))), s...)
		}
	}
	if same, ok := x.shared[string(key)]; ok {
		ino.Xattrs = same
		return nil
	}
	own := make(map[string]string, len(ino.Xattrs)) // whose strings are not parts of a whole header
	for k, v := range ino.Xattrs {
		own[strings.Clone(k)] = strings.Clone(v)
	}
	ino.Xattrs = own
	if x.shared == nil {
		x.shared = map[string]map[string]string{}
	}
	x.shared[string(key)] = own
	return x.hold(name, 2*len(key)+xattrsMemory)
}

// file makes a regular file.
func (x *extractor) file(
	ctx context.Context, hdr *tar.Header, dir *node, base string, ino *inode, body io.Reader, src *stream.Source,
) error {
	if x.contents += ino.Size; x.contents > x.limits.Bytes || x.contents < 0 {
		return invalid(hdr.Name, "more than %d bytes of files", x.limits.Bytes)
	}
	if _, err := x.clear(hdr.Name, dir, base); err != nil {
		return err
	}
	if _, err := x.add(hdr.Name, dir, base, ino); err != nil {
		return err
	}
	fd, mode, err := x.createFile(hdr.Name, dir, base, ino)
	if err != nil {
		return err
	}
	if ino.Size > maxSmall || isSparse(hdr) {
		return x.complete(hdr.Name, fd, ino, mode, x.fill(ctx, hdr, fd, ino, body, src))
	}
	if err := x.take(hdr.Name, ino.Size); err != nil {
		unix.Close(fd)
		return err
	}
	return x.small.add(smallFile{name: hdr.Name, fd: fd, mode: mode, ino: ino}, body, src)
}

// createFile returns the mode that it asked for: the final one at once spares a change of it, unless an attribute wants the right to write, or
// a chown clears bits.
func (x *extractor) createFile(name string, dir *node, base string, ino *inode) (fd int, mode uint32, err error) {
	mode = ino.Mode
	if len(ino.Xattrs) > 0 || mode&^0o777 != 0 {
		mode = 0o600
	}
	create := func() error {
		at, err := x.dirs.fd(dir)
		if err == nil {
			fd, err = beneath.OpenAt(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		}
		return err
	}
	if err = create(); errors.Is(err, unix.EMFILE) {
		if err = x.small.await(); err == nil { // they are open
			x.dirs.shrink()
			err = create()
		}
	}
	if err != nil {
		return -1, 0, ioError(name, "create", err)
	}
	return fd, mode, nil
}

// complete gives a file that was filled, or failed to be, its attributes and closes it.
func (x *extractor) complete(name string, fd int, ino *inode, mode uint32, err error) error {
	if err == nil && x.uid != 0 && len(ino.Xattrs) > 0 {
		err = unix.Fchmod(fd, 0o600) // user.* wants the right to write, which a umask may have taken
	}
	if err == nil {
		err = x.apply(name, beneath.Inode{FD: fd}, ino, mode)
	}
	if cerr := unix.Close(fd); cerr != nil && err == nil {
		err = ioError(name, "close", cerr)
	}
	return err
}

func entryOf(name string) string { return fmt.Sprintf("tar entry %q", printable.Clip(name)) }

// fill writes the content and hashes it on the way.
func (x *extractor) fill(ctx context.Context, hdr *tar.Header, fd int, ino *inode, body io.Reader, src *stream.Source) error {
	if isSparse(hdr) {
		return x.fillSparse(ctx, hdr, fd, ino, body, src)
	}
	x.hash.Reset()
	for off := int64(0); off < ino.Size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: %w", entryOf(hdr.Name), err)
		}
		buf := x.buf[:min(int64(len(x.buf)), ino.Size-off)]
		if err := readFull(body, buf); err != nil {
			return src.Blame(entryOf(hdr.Name), err)
		}
		x.hash.Write(buf)
		if err := x.take(hdr.Name, int64(len(buf))); err != nil {
			return err
		}
		if err := x.write(hdr.Name, fd, buf, -1); err != nil {
			return err
		}
		off += int64(len(buf))
	}
	ino.Hash = x.hash.Sum128().Bytes()
	return nil
}

var zeros [holeSize]byte

// write writes all of buf at off, or at the descriptor's own offset when off is negative.
func (x *extractor) write(name string, fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		var n int
		err := beneath.IgnoringEINTR(func() (err error) {
			if off < 0 {
				n, err = unix.Write(fd, buf)
			} else {
				n, err = unix.Pwrite(fd, buf, off)
			}
			return err
		})
		if err != nil {
			return ioError(name, "write", err)
		}
		if buf = buf[n:]; off >= 0 {
			off += int64(n)
		}
	}
	return nil
}
