// Package decompress returns the tar stream in the blob of a layer.
//
// It owns nothing: it reads one stream.
//
// Its invariant: memory that the stream asks for is announced before it is taken, and an error of the stream's content
// has the class stream.ErrInvalidLayer.
//
// The surprising rule: the first bytes of a blob decide how it is compressed, not its media type (ADR 28).
package decompress

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// gzipVariable is an environment variable. With the value klauspost, that library decodes gzip instead of package
// inflate. It accepts and refuses the same files: docs/adr/0013-own-gzip-decoder.md.
const gzipVariable = "TANK_GZIP"

var ownGzip = os.Getenv(gzipVariable) != "klauspost"

type compression string

const (
	plain   compression = "plain"
	gzipped compression = "gzip"
	zstded  compression = "zstd"
)

// Supported reports whether blobs of the media type are layers that NewReader can read.
func Supported(mediaType string) bool { return mediatype.Layer(mediaType) }

// NewReader returns the tar stream in a layer's blob. Its first bytes decide how it is decoded: gzip with any
// number of members, zstd with any number of frames, some of which may be skippable, or a plain tar. The media
// type has to be one of layers, but what it says about compression is ignored, since the diff ID decides whether
// the content is right. A blob of no bytes is an empty tar. Zeros or garbage after the last member of gzip are
// read and ignored.
//
// The caller closes the reader to free its memory; that does not close r. r is read to its end before the reader
// returns io.EOF. Errors are of class stream.ErrInvalidLayer if the bytes are to blame. Errors of r are wrapped.
func NewReader(mediaType string, r io.Reader) (io.ReadCloser, error) {
	return NewReaderWithin(mediaType, r, func(int64) error { return nil })
}

// NewReaderWithin is like NewReader, and calls grow before the decoder of a zstd stream takes so many bytes of
// memory, here or in a later Read. The stream decides how many. grow may wait. The decoders of other streams need
// little memory.
func NewReaderWithin(mediaType string, r io.Reader, grow func(bytes int64) error) (io.ReadCloser, error) {
	if !Supported(mediaType) {
		return nil, mediatype.NotRootfs(mediaType)
	}
	src := newBlobSource(r)
	got, err := sniff(src.Reader)
	if err != nil {
		return nil, src.Blame("blob", err)
	}
	switch got {
	case gzipped:
		if ownGzip {
			return newInflateReader(src), nil
		}
		src.Reader = bufio.NewReaderSize(src.Reader, stream.SmallReads)
		return &gzipReader{src: src}, nil
	case zstded:
		src.Reader = bufio.NewReaderSize(src.Reader, stream.SmallReads)
		return newZstdReader(src, grow)
	}
	return io.NopCloser(src), nil
}

func newBlobSource(r io.Reader) *stream.Source {
	return stream.NewSource(r, 1<<63-1, stream.LargeReads)
}

// others are the first bytes of compressed formats that some tools write and that no client of registries reads.
var others = []struct{ magic, name string }{
	{"BZh", "bzip2"}, {"\xfd7zXZ\x00", "xz"}, {"\x04\x22\x4d\x18", "lz4"},
}

// sniff returns the compression that the first bytes show. A valid header of a tar comes first, because the name
// in it may begin like a compressed stream.
func sniff(r *bufio.Reader) (compression, error) {
	head, err := r.Peek(blockSize)
	if err != nil && err != io.EOF {
		return "", err
	}
	switch {
	case len(head) == 0, isTar(head):
		return plain, nil
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzipped, nil
	case isZstd(head):
		return zstded, nil
	}
	for _, o := range others {
		if bytes.HasPrefix(head, []byte(o.magic)) {
			return "", fmt.Errorf("compressed with %s: layers are gzip, zstd or plain tar", o.name)
		}
	}
	return "", fmt.Errorf("starts with % x, which is neither gzip nor zstd nor tar", head[:min(len(head), 6)])
}

// isZstd reports whether a zstd frame or a skippable frame begins here.
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(head)
	return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50
}

const blockSize = 512

// isTar reports whether the block is the header of a tar, which its checksum shows, or a block of zeros, which
// ends an archive.
func isTar(head []byte) bool {
	if len(head) < blockSize {
		return false
	}
	var sum, signed int64
	zero := true
	for i, b := range head {
		zero = zero && b == 0
		if i >= 148 && i < 156 {
			b = ' ' // the checksum itself
		}
		sum += int64(b)
		signed += int64(int8(b)) // as some old tars had it
	}
	if zero {
		return true
	}
	field := strings.Trim(string(head[148:156]), " \x00")
	n, err := strconv.ParseInt(field, 8, 64)
	return err == nil && (n == sum || n == signed)
}

var errGzipClosed = fmt.Errorf("gzip: closed reader: %w", io.ErrClosedPipe)

// gzipReader reads one member after the other, and stops at bytes that are no member.
type gzipReader struct {
	src  *stream.Source
	z    *gzip.Reader
	done error
}

func (g *gzipReader) Read(p []byte) (int, error) {
	if g.done != nil {
		return 0, g.done
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if g.z == nil {
			if g.done = g.begin(nil); g.done != nil {
				return 0, g.done
			}
		}
		n, err := g.z.Read(p)
		switch {
		case err == io.EOF:
			g.done = g.next()
		case err != nil:
			g.done = g.src.Blame("gzip", err)
		}
		if n > 0 {
			return n, nil
		}
		if g.done != nil {
			return 0, g.done
		}
	}
}

// begin reads the header of a member.
func (g *gzipReader) begin(z *gzip.Reader) (err error) {
	if z == nil {
		z, err = gzip.NewReader(g.src.Reader)
	} else {
		err = z.Reset(g.src.Reader)
	}
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return g.src.Blame("gzip header", err)
	}
	z.Multistream(false)
	g.z = z
	return nil
}

// next goes on to the following member. Bytes that are no member are read to the end of the blob.
func (g *gzipReader) next() error {
	magic, err := g.src.Peek(2)
	if err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		return g.begin(g.z)
	}
	if _, err := io.Copy(io.Discard, g.src); err != nil {
		return g.src.Blame("blob", err)
	}
	return io.EOF
}

func (g *gzipReader) Close() error {
	g.done = errGzipClosed
	g.z = nil
	return nil
}

// inflateReader does the same as gzipReader, with package inflate.
type inflateReader struct {
	src *stream.Source
	z   *inflate.Reader // nil when closed
}

func newInflateReader(src *stream.Source) *inflateReader {
	return &inflateReader{src, inflate.New(src, &inflate.Options{IgnoreTrailing: true, RefuseReserved: true})}
}

func (r *inflateReader) Read(p []byte) (int, error) {
	if r.z == nil {
		return 0, errGzipClosed
	}
	n, err := r.z.Read(p)
	return n, r.blame(err)
}

// WriteTo writes from the buffer of the decoder, without a copy.
func (r *inflateReader) WriteTo(w io.Writer) (int64, error) {
	if r.z == nil {
		return 0, errGzipClosed
	}
	to := &sink{w: w}
	n, err := r.z.WriteTo(to)
	if to.err != nil {
		return n, to.err
	}
	return n, r.blame(err)
}

func (r *inflateReader) blame(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return r.src.Blame("gzip", err)
}

func (r *inflateReader) Close() error {
	if r.z == nil {
		return nil
	}
	z := r.z
	r.z = nil
	return z.Close()
}

// sink records an error of the writer, to distinguish it from one of the decoder.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (n int, err error) {
	n, s.err = s.w.Write(p)
	if s.err == nil && n < len(p) {
		s.err = io.ErrShortWrite
	}
	return n, s.err
}
