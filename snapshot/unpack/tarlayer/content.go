package tarlayer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"unsafe"

	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// Content is the content of one file, which can be read once and only before Writer.File returns.
type Content struct {
	x    *reader
	hdr  *tar.Header
	ino  *Inode
	body io.Reader
	src  *stream.Source
}

// Sink takes the content of a file from its beginning to its end. Errors of its methods end the copy.
type Sink interface {
	// Write takes the next bytes, which are valid until it returns.
	Write(p []byte) error
	// Skip takes so many zeros, which the archive leaves out.
	Skip(bytes int64) error
}

// Name returns the name of the entry as the tar has it, for errors.
func (c *Content) Name() string { return c.hdr.Name }

// Sparse reports whether the archiver found holes in the file.
func (c *Content) Sparse() bool {
	if c.hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for record := range c.hdr.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// Reserve asks for room for so many bytes. A Writer calls it before it writes them.
func (c *Content) Reserve(bytes int64) error { return c.x.reserveRoom(c.hdr.Name, bytes) }

// ReadAll reads the whole content into buf, which is as long as the content. It does not set the inode's Hash: that is
// Hash(buf), which another goroutine may compute.
func (c *Content) ReadAll(buf []byte) error { return c.readFull(buf) }

// Hash returns the Hash of an inode with this content.
func Hash(content []byte) [16]byte { return xxh3.Hash128(content).Bytes() }

// CopyTo reads the content through buf into to and sets the inode's Hash. Only the content of a Sparse file is skipped
// over. It ends with ctx. The error names the entry, unless it is one of to.
func (c *Content) CopyTo(ctx context.Context, to Sink, buf []byte) error {
	if c.Sparse() {
		return c.copySparse(ctx, to, buf)
	}
	hash := c.x.hash
	hash.Reset()
	for left := c.ino.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return entryError(c.hdr.Name, err)
		}
		piece := buf[:min(int64(len(buf)), left)]
		if err := c.readFull(piece); err != nil {
			return err
		}
		hash.Write(piece)
		if err := to.Write(piece); err != nil {
			return err
		}
		left -= int64(len(piece))
	}
	c.ino.Hash = hash.Sum128().Bytes()
	return nil
}

// readFull fills buf. The header promised so many bytes, so that a shorter stream is invalid.
func (c *Content) readFull(buf []byte) error {
	_, err := io.ReadFull(c.body, buf)
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return c.src.Blame(entryName(c.hdr.Name), err)
}

// copySparse copies a file with holes. Holes of the archive are not hashed byte by byte.
func (c *Content) copySparse(ctx context.Context, to Sink, buf []byte) error {
	w := &sparseCopy{interrupted: ctx.Err, c: c, to: to, buf: buf}
	var n int64
	var err error
	if from := holeSkipper(c.body); from != nil {
		n, err = from.WriteTo(w)
	} else {
		n, err = w.ReadFrom(c.body)
	}
	switch {
	case w.err != nil:
		return w.err
	case err == nil && n != c.ino.Size:
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return c.src.Blame(entryName(c.hdr.Name), err)
	}
	c.ino.Hash = w.hash.Sum128()
	return nil
}

// holeSkipper returns the writer of an entry's content that seeks over its holes; nil if there is none. tar.Reader has
// such a writer but exports only Read (golang.org/issue/22735), which produces every zero.
func holeSkipper(body io.Reader) io.WriterTo {
	tr, ok := body.(*tar.Reader)
	if !ok {
		return nil
	}
	curr := reflect.ValueOf(tr).Elem().FieldByName("curr")
	if !curr.IsValid() || curr.Kind() != reflect.Interface {
		return nil
	}
	w, _ := reflect.NewAt(curr.Type(), unsafe.Pointer(curr.UnsafeAddr())).Elem().Interface().(io.WriterTo)
	return w
}

// sparseCopy takes a file with holes from package tar, hashes it and hands it to a Sink.
type sparseCopy struct {
	interrupted func() error
	c           *Content
	to          Sink
	buf         []byte
	at          int64
	hash        sparse.Hash
	err         error // of the Sink or of the context, not of reading
}

// Seek skips a hole.
func (w *sparseCopy) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return w.at, errors.ErrUnsupported
	}
	x := w.c.x
	if x.holes += n; x.holes > x.limits.Holes {
		w.err = invalid(w.c.hdr.Name, "more than %d bytes of holes", x.limits.Holes)
		return w.at, w.err
	}
	w.hash.Zeros(n)
	w.at += n
	if w.err = w.to.Skip(n); w.err == nil {
		w.err = entryError(w.c.hdr.Name, w.interrupted())
	}
	return w.at, w.err
}

// Write takes bytes of the content.
func (w *sparseCopy) Write(p []byte) (int, error) {
	_, _ = w.hash.Write(p)
	if w.err = w.to.Write(p); w.err != nil {
		return 0, w.err
	}
	w.at += int64(len(p))
	w.err = entryError(w.c.hdr.Name, w.interrupted())
	return len(p), w.err
}

// ReadFrom takes all that a reader has.
func (w *sparseCopy) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		m, err := r.Read(w.buf)
		if m > 0 {
			if _, err := w.Write(w.buf[:m]); err != nil {
				return n, err
			}
			n += int64(m)
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}
