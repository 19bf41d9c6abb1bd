// Package sparse copies and hashes files in a time that does not grow with their holes.
//
// It owns nothing on disk.
//
// Its invariant: it asks the file system for holes only after the data of the file is on the disk. File
// systems without extents report data that is not yet written as a hole (for example, ext4 on a disk that
// mkfs.ext3 formatted), and a copy would have zeros there.
//
// The surprising rule: the hash of a file covers the zeros in its holes, so it does not depend on where a
// file system has holes. Only the time is saved.
package sparse

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/interrupt"
)

const (
	// readWhole is the size up to which files are read completely, because that is faster than waiting for the disk.
	readWhole = 16 << 20
	// step is how many bytes are copied or hashed between two checks of the context.
	step = 64 << 20
	// unit is the size of the blocks that become holes in a copy if they contain only zeros.
	unit = 4096
)

var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// HasHoles reports whether an open file of a size has holes that are worth searching.
func HasHoles(fd int, size int64) bool {
	var st unix.Stat_t
	return size > readWhole && unix.Fstat(fd, &st) == nil && st.Blocks*512 < size-readWhole/16
}

// Sum128 returns XXH3-128 of the content of an open file of a size, in a time that does not depend on its
// holes. It does not move the file's offset.
func Sum128(ctx context.Context, fd int, size int64) ([16]byte, error) {
	if !HasHoles(fd, size) {
		h := xxh3.New() // faster than Hash for data
		err := read(ctx, fd, 0, size, h)
		return h.Sum128().Bytes(), err
	}
	var h Hash
	at := int64(0)
	err := extents(ctx, fd, size, func(from, end int64) error {
		h.Zeros(from - at)
		at = end
		return read(ctx, fd, from, end, &h)
	})
	h.Zeros(size - at)
	return h.Sum128(), err
}

// read adds the bytes from at to end to a hash.
func read(ctx context.Context, fd int, at, end int64, h io.Writer) error {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	for at < end {
		interrupt.Step(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.Pread(fd, buf[:min(end-at, int64(len(buf)))], at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		_, _ = h.Write(buf[:n]) // a hash never fails
		at += int64(n)
	}
	return nil
}

// cut returns the error for a file that became shorter while it was read.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Copy copies the content of a file into a new, empty one. It shares the extents if the file system can. Otherwise it
// copies the data without the holes.
func Copy(ctx context.Context, to, from *os.File) error {
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	switch {
	case st.Blocks*512 >= st.Size:
		return copyRange(ctx, to, from, 0, st.Size)
	case st.Size <= readWhole:
		return copyWhole(to, from, st.Size)
	}
	if err := unix.Ftruncate(int(to.Fd()), st.Size); err != nil {
		return err
	}
	return extents(ctx, int(from.Fd()), st.Size, func(at, end int64) error { return copyRange(ctx, to, from, at, end) })
}

// copyWhole reads every byte, and does not write blocks of zeros.
func copyWhole(to, from *os.File, size int64) error {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	for at := int64(0); at < size; {
		n, err := from.ReadAt(buf[:min(size-at, int64(len(buf)))], at)
		if werr := writeAt(to, buf[:n], at); werr != nil {
			return werr
		}
		if at += int64(n); err != nil && (!errors.Is(err, io.EOF) || at < size) {
			return cut(err)
		}
	}
	return unix.Ftruncate(int(to.Fd()), size)
}

// writeAt writes to a part of a new file. It leaves out blocks of zeros.
func writeAt(f *os.File, p []byte, at int64) error {
	for len(p) > 0 {
		n := 0 // bytes to write, from one block of zeros to the next
		for n < len(p) && !isZero(p[n:min(n+unit, len(p))]) {
			n = min(n+unit, len(p))
		}
		if _, err := f.WriteAt(p[:n], at); err != nil {
			return err
		}
		if n < len(p) {
			n = min(n+unit, len(p))
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

var zeros [unit]byte

func isZero(p []byte) bool { return string(p) == string(zeros[:len(p)]) }

// extents calls fn for the ranges with data, in order. Before it asks the file system for them, it syncs the
// file. If that fails, or if the file system does not report holes, it calls fn for the whole file.
func extents(ctx context.Context, fd int, size int64, fn func(at, end int64) error) error {
	if !HasHoles(fd, size) || unix.Fdatasync(fd) != nil {
		return fn(0, size)
	}
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // the rest is a hole
		}
		end := size
		if err == nil {
			end, err = unix.Seek(fd, data, unix.SEEK_HOLE)
		}
		if err != nil {
			data, end = at, size
		}
		if data >= size {
			return nil
		}
		at = min(end, size)
		if err := fn(data, at); err != nil {
			return err
		}
	}
	return nil
}

// copyRange copies the bytes from at to end, in the kernel if possible.
func copyRange(ctx context.Context, to, from *os.File, at, end int64) error {
	for at < end {
		interrupt.Step(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r, w, size := at, at, min(end-at, step)
		n, err := unix.CopyFileRange(int(from.Fd()), &r, int(to.Fd()), &w, int(size), 0)
		if err != nil || n == 0 {
			var copied int64
			copied, err = io.Copy(io.NewOffsetWriter(to, at), io.NewSectionReader(from, at, size))
			if n = int(copied); err == nil && copied == 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}
