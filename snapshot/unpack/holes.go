package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// isSparse reports whether the archiver found holes in the file.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for record := range hdr.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// fillSparse writes and hashes the content of a file with holes. Holes of the archive are neither written nor hashed
// byte by byte, and blocks of zeros are left out.
func (x *extractor) fillSparse(
	ctx context.Context, hdr *tar.Header, fd int, ino *inode, body io.Reader, src *stream.Source,
) error {
	w := &holeWriter{interrupted: ctx.Err, x: x, name: hdr.Name, fd: fd}
	var n int64
	var err error
	if from := skipsHoles(body); from != nil {
		n, err = from.WriteTo(w)
	} else {
		n, err = w.ReadFrom(body)
	}
	switch {
	case w.err != nil:
		return w.err
	case err == nil && n != ino.Size:
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return src.Blame(entryOf(hdr.Name), err)
	}
	ino.Hash = w.hash.Sum128()
	if err := unix.Ftruncate(fd, ino.Size); err != nil {
		return ioError(hdr.Name, "truncate", err)
	}
	return nil
}

// skipsHoles returns the writer of an entry's content that seeks over its holes; nil if there is none. tar.Reader has
// such a writer but exports only Read (golang.org/issue/22735), which produces every zero.
func skipsHoles(body io.Reader) io.WriterTo {
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

// holeWriter writes a file with holes, and hashes it.
type holeWriter struct {
	interrupted func() error
	x           *extractor
	name        string
	fd          int
	at          int64
	hash        sparse.Hash
	err         error // of writing, in contrast to reading
}

// Seek skips a hole.
func (w *holeWriter) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return w.at, errors.ErrUnsupported
	}
	if w.x.holes += n; w.x.holes > w.x.limits.Holes {
		w.err = invalid(w.name, "more than %d bytes of holes", w.x.limits.Holes)
		return w.at, w.err
	}
	w.hash.Zeros(n)
	w.at += n
	return w.at, w.fail(w.interrupted())
}

func (w *holeWriter) Write(p []byte) (int, error) {
	_, _ = w.hash.Write(p)
	for rest, at := p, w.at; len(rest) > 0; {
		n := min(holeSize, len(rest))
		if string(rest[:n]) != string(zeros[:n]) {
			err := w.x.take(w.name, int64(n))
			if err == nil {
				err = w.x.write(w.name, w.fd, rest[:n], at)
			}
			if err != nil {
				w.err = err
				return 0, err
			}
		}
		rest, at = rest[n:], at+int64(n)
	}
	w.at += int64(len(p))
	return len(p), w.fail(w.interrupted())
}

// ReadFrom writes what a reader has, through the extractor's buffer.
func (w *holeWriter) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		m, err := r.Read(w.x.buf)
		if m > 0 {
			if _, err := w.Write(w.x.buf[:m]); err != nil {
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

func (w *holeWriter) fail(err error) error {
	if err != nil {
		w.err = fmt.Errorf("%s: %w", entryOf(w.name), err)
	}
	return w.err
}
