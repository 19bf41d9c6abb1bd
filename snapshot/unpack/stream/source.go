// Package stream reads the bytes of a layer and records which side failed: the reader or the content.
//
// It owns nothing on disk.
//
// Its invariant: an error of the underlying reader never gets the class ErrInvalidLayer, and every error of the
// content has it.
//
// The surprising rule: an unexpected end of the stream is blamed on the content, unless the reader returned an
// error.
package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// ErrInvalidLayer is the class of all errors that the content of a layer causes: hostile, malformed or
// contradictory entries, damaged compression, a media type that does not match the bytes, and content beyond
// tarlayer.Limits. It is of class errdefs.ErrFailedPrecondition. Errors of the reader and of the file system do
// not have this class.
var ErrInvalidLayer = cause.Mark(fmt.Errorf("invalid layer: %w", errdefs.ErrFailedPrecondition), cause.LayerInvalid, "")

// Source reads a stream. It joins small reads, counts the bytes, and remembers the error of the underlying reader, so
// that it can be distinguished from an error of the content.
type Source struct {
	*bufio.Reader
	under *counter
}

// counter reads at most limit bytes of r.
type counter struct {
	r     io.Reader
	limit int64
	left  int64 // limit less the bytes that were read
	err   error // of r, other than io.EOF; or the error of exceeding limit
}

// Sizes of a source's buffer. A read of at least that size bypasses the buffer, so that callers with large
// buffers of their own are best served by a small one.
const (
	SmallReads = 128 << 10 // for callers that read byte by byte
	LargeReads = 4 << 10
)

// NewSource returns a source of at most limit bytes of r. buffer is the size of its buffer in bytes. Reading more than
// limit bytes is an error of class ErrInvalidLayer.
func NewSource(r io.Reader, limit int64, buffer int) *Source {
	c := &counter{r: r, left: limit, limit: limit}
	return &Source{bufio.NewReaderSize(c, buffer), c}
}

func (c *counter) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	if c.left < 0 {
		err = fmt.Errorf("more than %d bytes: %w", c.limit, ErrInvalidLayer)
	}
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// Failed returns the error of the underlying reader, or that of exceeding the limit, nil if neither failed.
func (s *Source) Failed() error { return s.under.err }

// Blame returns an error for err, which occurred while the content was read. If Failed returns an error, Blame wraps
// that one instead of err. Otherwise the content is wrong, and the error has the class ErrInvalidLayer. what begins
// the message.
func (s *Source) Blame(what string, err error) error {
	if s.under.err != nil {
		return fmt.Errorf("%s: %w", what, s.under.err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: the stream ends in its middle: %w", what, ErrInvalidLayer)
	}
	return fmt.Errorf("%s: %w: %w", what, err, ErrInvalidLayer)
}

// Drain reads the stream to its end and discards the bytes.
func (s *Source) Drain(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("layer: %w", err)
		}
		switch _, err := io.CopyN(io.Discard, s, 16<<20); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return s.Blame("tar stream", err)
		}
	}
}
