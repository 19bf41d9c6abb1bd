package unpack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
)

// source joins small reads, counts the stream, and remembers how it failed, so that errors of the reader can be told from errors of
// the content.
type source struct {
	*bufio.Reader
	under *counter
}

type counter struct {
	r     io.Reader
	left  int64
	err   error // what r returned, other than io.EOF
	limit int64
}

// Sizes of a source's buffer. Reads of as much go past it: a small one spares those who bring large buffers a copy.
const (
	smallReads = 128 << 10 // for those who read byte by byte
	largeReads = 4 << 10
)

func newSource(r io.Reader, limit int64, buffer int) *source {
	c := &counter{r: r, left: limit, limit: limit}
	return &source{bufio.NewReaderSize(c, buffer), c}
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

// blame wraps err, which came up while the content was read: as it is when the reader failed, with the class
// ErrInvalidLayer when the content is wrong.
func (s *source) blame(what string, err error) error {
	if s.under.err != nil {
		return fmt.Errorf("%s: %w", what, s.under.err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: the stream ends in its middle: %w", what, ErrInvalidLayer)
	}
	return fmt.Errorf("%s: %w: %w", what, err, ErrInvalidLayer)
}

// drain reads the stream to its end.
func (s *source) drain(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("layer: %w", err)
		}
		switch _, err := io.CopyN(io.Discard, s, 16<<20); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return s.blame("tar stream", err)
		}
	}
}
