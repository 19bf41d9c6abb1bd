package dirwriter

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// File makes a regular file. A small one is filled later, by the gatherer.
func (w *Writer) File(ctx context.Context, n *tarlayer.Node, content *tarlayer.Content) error {
	ino := n.Inode
	fd, mode, err := w.create(n)
	if err != nil {
		return entryError(content.Name(), "create", err)
	}
	if ino.Size > maxSmall || content.Sparse() {
		return w.complete(content.Name(), fd, ino, mode, w.fill(ctx, fd, ino, content))
	}
	if err := content.Reserve(ino.Size); err != nil {
		unix.Close(fd)
		return err
	}
	return w.small.add(smallFile{name: content.Name(), fd: fd, mode: mode, ino: ino}, content)
}

// create creates a file and returns the mode that it asked for. This is the final mode if possible, which saves a
// change of it. It is not possible if the file gets extended attributes, which need the right to write, or a bit that
// a chown clears.
func (w *Writer) create(n *tarlayer.Node) (fd int, mode uint32, err error) {
	mode = n.Inode.Mode
	if len(n.Inode.Xattrs) > 0 || mode&^0o777 != 0 {
		mode = 0o600
	}
	fd, err = w.createMode(n, mode)
	if errors.Is(err, unix.EMFILE) {
		if err = w.small.await(); err == nil { // which closes the gathered files
			w.dirs.shrink()
			fd, err = w.createMode(n, mode)
		}
	}
	return fd, mode, err
}

func (w *Writer) createMode(n *tarlayer.Node, mode uint32) (int, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, err := w.dirs.fd(n.Parent())
	if err != nil {
		return -1, err
	}
	return beneath.OpenAt(at, n.Name(), flags, mode)
}

// complete closes a file that was filled, or failed to be with err, after it set its attributes. It returns the first
// error.
func (w *Writer) complete(name string, fd int, ino *tarlayer.Inode, mode uint32, err error) error {
	if err == nil && w.uid != 0 && len(ino.Xattrs) > 0 {
		// user.* needs the right to write, which a umask may have removed.
		if err = unix.Fchmod(fd, 0o600); err != nil {
			err = entryError(name, "mode", err)
		}
	}
	if err == nil {
		if err = w.apply(beneath.Inode{FD: fd}, ino, mode); err != nil {
			err = entryError(name, "attributes", err)
		}
	}
	if cerr := unix.Close(fd); cerr != nil && err == nil {
		err = entryError(name, "close", cerr)
	}
	return err
}

// fill writes the content of a large or sparse file.
func (w *Writer) fill(ctx context.Context, fd int, ino *tarlayer.Inode, content *tarlayer.Content) error {
	if !content.Sparse() {
		return content.CopyTo(ctx, &wholeFile{content, fd}, w.buf)
	}
	if err := content.CopyTo(ctx, &sparseFile{content: content, fd: fd}, w.buf); err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, ino.Size); err != nil {
		return entryError(content.Name(), "truncate", err)
	}
	return nil
}

// wholeFile writes every byte.
type wholeFile struct {
	content *tarlayer.Content
	fd      int
}

func (f *wholeFile) Write(p []byte) error {
	if err := f.content.Reserve(int64(len(p))); err != nil {
		return err
	}
	return write(f.content.Name(), f.fd, p)
}

// Skip is not called, because the file has no holes.
func (f *wholeFile) Skip(int64) error { return errors.ErrUnsupported }

// sparseFile writes no holes and no blocks of zeros.
type sparseFile struct {
	content *tarlayer.Content
	fd      int
	at      int64
}

// holeSize is the size in bytes of the blocks of zeros that a sparse file leaves out.
const holeSize = 4096

var zeros [holeSize]byte

func (f *sparseFile) Skip(bytes int64) error {
	f.at += bytes
	return nil
}

func (f *sparseFile) Write(p []byte) error {
	for len(p) > 0 {
		n := min(holeSize, len(p))
		if string(p[:n]) != string(zeros[:n]) {
			if err := f.content.Reserve(int64(n)); err != nil {
				return err
			}
			if err := writeAt(f.content.Name(), f.fd, p[:n], f.at); err != nil {
				return err
			}
		}
		p, f.at = p[n:], f.at+int64(n)
	}
	return nil
}

// write writes all of buf at the descriptor's own offset.
func write(name string, fd int, buf []byte) error {
	for len(buf) > 0 {
		var n int
		err := beneath.IgnoringEINTR(func() (err error) {
			n, err = unix.Write(fd, buf)
			return err
		})
		if err != nil {
			return entryError(name, "write", err)
		}
		buf = buf[n:]
	}
	return nil
}

// writeAt writes all of buf at off.
func writeAt(name string, fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		var n int
		err := beneath.IgnoringEINTR(func() (err error) {
			n, err = unix.Pwrite(fd, buf, off)
			return err
		})
		if err != nil {
			return entryError(name, "write", err)
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

// entryError adds to an error what was done to which entry of the tar.
func entryError(name, op string, err error) error {
	return fmt.Errorf("tar entry %q: %s: %w", printable.Clip(name), op, err)
}
