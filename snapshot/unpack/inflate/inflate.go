// Package inflate decompresses gzip files (RFC 1952) that are read whole, such as image layers, as fast as one
// core can.
//
// On disk it owns nothing. It knows one stream, and not what the stream contains.
//
// Its invariant: bytes and errors are those of compress/gzip. It accepts what compress/gzip accepts, returns the
// same bytes before an error, and returns the same error, including the offset in flate.CorruptInputError.
//
// The surprising rule: it reads ahead, up to 64 KiB, and delivers nothing before a buffer is full or the stream
// ends. That is right for files, and wrong for a connection whose other side waits for an answer.
// docs/performance.md has figures.
//
// A wrong limit in this package can return wrong bytes, which the checksum detects, but cannot reach memory
// outside of the buffers: indexes are masked to the size of arrays, and nothing is unsafe.
package inflate

import (
	"errors"
	"io"
	"sync"
)

// errClosed is the error of a Reader that was closed.
var errClosed = errors.New("inflate: the reader was closed")

// Options are the ways in which a Reader may differ from compress/gzip. The zero value differs in nothing.
type Options struct {
	// IgnoreTrailing reads bytes after the last member to the end of the source and ignores them, if they do not
	// start with the two bytes of gzip's magic. false: they have to be a member; otherwise the error is
	// gzip.ErrHeader or io.ErrUnexpectedEOF.
	IgnoreTrailing bool
	// RefuseReserved returns gzip.ErrHeader for reserved flags in a header, as RFC 1952, 2.3.1.2 demands. false:
	// they are ignored.
	RefuseReserved bool
}

// Reader returns the decompressed bytes of a gzip file of any number of members. Only one goroutine may use it at
// a time.
type Reader struct {
	d    *decoder // nil when closed
	opts Options
}

// decoders is a pool, because a decoder is large: two buffers and the tables.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// New returns a Reader that decompresses src. It begins to read src at the first Read or WriteTo, and reads it to
// its end. The caller closes it, so that its memory can be used again. nil Options stand for their zero value.
//
// Errors are those of compress/gzip: gzip.ErrHeader, gzip.ErrChecksum, flate.CorruptInputError,
// io.ErrUnexpectedEOF if the source ends early, and errors of the source, unwrapped. A source of no bytes has no
// content.
func New(src io.Reader, opts *Options) *Reader {
	r := &Reader{}
	if opts != nil {
		r.opts = *opts
	}
	r.Reset(src)
	return r
}

// Reset makes r equal to what New returns for src. It may be called after Close.
func (r *Reader) Reset(src io.Reader) {
	if r.d == nil {
		r.d = decoders.Get().(*decoder)
	}
	r.d.reset(src, r.opts)
}

// Read copies as much as possible from the buffer to p, and decodes only if the buffer is empty. All bytes before
// a fault are returned before its error.
func (r *Reader) Read(p []byte) (int, error) {
	if r.d == nil {
		return 0, errClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.d.more(); err != nil {
		return 0, err
	}
	n := copy(p, r.d.out[r.d.delivered:r.d.pos])
	r.d.delivered += n
	return n, nil
}

// WriteTo writes the rest to w in pieces of up to 256 KiB, without a copy. The next Read or WriteTo returns the
// bytes that w did not accept.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	if r.d == nil {
		return 0, errClosed
	}
	var total int64
	for {
		if err := r.d.more(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
		piece := r.d.out[r.d.delivered:r.d.pos]
		n, err := w.Write(piece)
		if n < 0 || n > len(piece) {
			return total, errors.New("inflate: the writer counts wrong")
		}
		r.d.delivered += n
		total += int64(n)
		if err == nil && n < len(piece) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
}

// Close releases the memory. It does not close the source.
func (r *Reader) Close() error {
	if r.d != nil {
		r.d.state = state{}
		decoders.Put(r.d)
		r.d = nil
	}
	return nil
}
