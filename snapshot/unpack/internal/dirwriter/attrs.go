package dirwriter

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// SetAttrs gives an inode that exists the attributes of n, and removes extended attributes that n does not have.
func (w *Writer) SetAttrs(n *tarlayer.Node) error {
	fd, err := w.dirs.fd(n.Parent())
	if err != nil {
		return err
	}
	t := beneath.At(fd, n.Name())
	e := n.Inode.Entry()
	if err := t.ApplyExact(&e); err != nil {
		return attrError(err)
	}
	w.dropped.note(n.Inode, &e)
	return w.readBack(t, n.Inode)
}

// apply sets the attributes of a new inode, which was made with the mode made, and corrects in ino what the file system
// made of them.
func (w *Writer) apply(t beneath.Inode, ino *tarlayer.Inode, made uint32) error {
	e := ino.Entry()
	if err := t.Apply(&e, w.uid, w.gid, made); err != nil {
		return attrError(err)
	}
	w.dropped.note(ino, &e)
	return w.readBack(t, ino)
}

// readBack reads the attributes that file systems are known to change: times out of their range or finer than their
// resolution; ACLs, which share bits with the mode; and capabilities of revision 3, which the root user that they are
// bound to reads as revision 2.
func (w *Writer) readBack(t beneath.Inode, ino *tarlayer.Inode) error {
	_, access := ino.Xattrs[entry.ACLAccess]
	_, dflt := ino.Xattrs[entry.ACLDefault]
	_, caps := entry.CapabilityRoot(ino.Xattrs[entry.CapabilityAttr])
	times := w.coarse && ino.Nsec != 0 || ino.Sec < 0 || ino.Sec >= 1<<31
	if !times && !access && !dflt && !caps {
		return nil
	}
	var st unix.Stat_t
	if err := t.Stat(&st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	ino.Sec, ino.Nsec = int64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	if access || dflt || caps {
		ino.Mode = st.Mode & 0o7777
		var err error
		if ino.Xattrs, err = t.Xattrs(ino.Type); err != nil {
			return fmt.Errorf("xattrs: %w", err)
		}
	}
	return nil
}

// attrError adds the class ErrInvalidLayer if the kernel refused the value of an extended attribute as malformed.
func attrError(err error) error {
	if beneath.IsMalformedXattr(err) {
		return fmt.Errorf("%v: %w", err, stream.ErrInvalidLayer)
	}
	return err
}
