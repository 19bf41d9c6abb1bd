// Package inflate decompresses gzip files (RFC 1952) that are read whole and as fast as one core can: image layers.
//
// On disk it owns nothing. It knows one stream, and not what is in it.
//
// Its invariant: bytes and verdict are those of compress/gzip. It accepts what compress/gzip accepts, gives the same
// bytes before it gives up, and returns the same errors, the offset in flate.CorruptInputError included.
//
// The surprising rule: it reads ahead, up to 64 KiB, and delivers nothing before a buffer is full or the stream ends.
// That is right for files, and wrong for a connection on which somebody waits for an answer. See docs/performance.md
// for what it gives.
//
// A limit that is wrong here can give wrong bytes, which the checksum finds, but cannot reach memory outside of the
// buffers: indexes are masked to the size of arrays, and nothing is unsafe.
package inflate

import (
	"errors"
	"io"
	"sync"
)

// errClosed is what a Reader returns that was closed.
var errClosed = errors.New("inflate: the reader was closed")

// Options say where a Reader departs from compress/gzip. The zero value is that it does not.
type Options struct {
	// IgnoreTrailing reads what follows the last member to the end of the source, and ignores it, when it does not
	// start with the two bytes of gzip's magic. false: it has to be a member, or is gzip.ErrHeader or
	// io.ErrUnexpectedEOF.
	IgnoreTrailing bool
	// RefuseReserved makes reserved flags in a header gzip.ErrHeader, as RFC 1952, 2.3.1.2 has it. false: they are
	// ignored.
	RefuseReserved bool
}

// Reader gives the decompressed bytes of a gzip file of any number of members. It is for one goroutine at a time.
type Reader struct {
	d    *decoder // nil when closed
	opts Options
}

// Decoders are large: two buffers and the tables.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// New returns a Reader that decompresses what src gives, which it starts to read at the first Read or WriteTo, and
// reads to its end. Close it, so that its memory is used again. nil Options stand for their zero value.
//
// Errors are those of compress/gzip: gzip.ErrHeader, gzip.ErrChecksum, flate.CorruptInputError, io.ErrUnexpectedEOF
// when the source ends early, and errors of the source as they are. A source of no bytes gives no bytes.
func New(src io.Reader, opts *Options) *Reader {
	r := &Reader{}
	if opts != nil {
		r.opts = *opts
	}
	r.Reset(src)
	return r
}

// Reset makes r what New would have returned for src, also after Close.
func (r *Reader) Reset(src io.Reader) {
	if r.d == nil {
		r.d = decoders.Get().(*decoder)
	}
	r.d.reset(src, r.opts)
}

// Read fills p as far as it can from the buffer, and decodes only when that is empty. All bytes before a fault are
// returned before its error is.
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

// WriteTo writes all that is left to w in pieces of up to 256 KiB, without a copy. A piece that w did not take is
// still there for the next Read or WriteTo.
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

// Close gives the memory back. It does not close the source.
func (r *Reader) Close() error {
	if r.d != nil {
		r.d.state = state{}
		decoders.Put(r.d)
		r.d = nil
	}
	return nil
}
