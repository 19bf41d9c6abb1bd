package decompress

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// The window of a zstd frame, which is how far back it may refer, decides how much memory the decoder takes.
// usualWindow is what every decoder has to support, and maxWindow is the most that a layer may ask for. A process
// with addresses of 32 bits has room for less.
const (
	usualWindow = 8 << 20
	maxWindow   = 128 << 20 << (3 * (strconv.IntSize / 64))
)

// zstdReader decodes a zstd stream. For a frame with a larger window than all before it, it makes a new decoder,
// so that the memory of the old one is free before the new one takes its own.
type zstdReader struct {
	src    *stream.Source
	frames *zstdFrames
	z      *zstd.Decoder // nil when closed
}

func newZstdReader(src *stream.Source, grow func(int64) error) (*zstdReader, error) {
	r := &zstdReader{src: src, frames: &zstdFrames{src: src, grow: grow}}
	if err := r.frames.take(usualWindow); err != nil {
		return nil, r.blame(err)
	}
	if err := r.begin(); err != nil {
		return nil, r.blame(err)
	}
	return r, nil
}

// begin makes the decoder for the next frames, after their memory was granted.
func (r *zstdReader) begin() (err error) {
	if err := r.frames.begin(); err != nil && err != io.EOF {
		return err
	}
	r.z, err = zstd.NewReader(r.frames, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow))
	return err
}

func (r *zstdReader) Read(p []byte) (int, error) {
	for {
		if r.z == nil {
			return 0, fmt.Errorf("zstd: closed reader: %w", io.ErrClosedPipe)
		}
		n, err := r.z.Read(p)
		switch {
		case err == nil:
			return n, nil
		case err != io.EOF, r.src.Failed() != nil: // the decoder reports some errors as the end
			return n, r.blame(err)
		case !r.frames.larger:
			return n, io.EOF
		}
		r.Close()
		if r.frames.granted > 8*usualWindow {
			runtime.GC()
		}
		if err := r.begin(); err != nil {
			return n, r.blame(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// blame gives an error the class of its cause. An error of grow keeps its own class.
func (r *zstdReader) blame(err error) error {
	var refused memoryError
	if errors.As(err, &refused) {
		return fmt.Errorf("zstd: memory: %w", refused.error)
	}
	return r.src.Blame("zstd", err)
}

func (r *zstdReader) Close() error {
	if r.z != nil {
		r.z.Close()
		r.z = nil
	}
	return nil
}

// memoryError marks an error of grow.
type memoryError struct{ error }

func (e memoryError) Unwrap() error { return e.error }

// zstdFrames passes a zstd stream on, frame by frame (RFC 8878). It asks for the memory of a frame before the
// decoder sees its header. Before a frame that needs more memory than all before it, it sets larger and returns
// io.EOF.
type zstdFrames struct {
	src     *stream.Source
	grow    func(int64) error
	granted uint64 // bytes of memory that were asked for
	larger  bool   // the next frame needs more

	left     int64 // bytes before the next header of a frame or a block
	inFrame  bool  // the next header is one of a block
	checksum bool  // the frame ends with one
}

func (f *zstdFrames) Read(p []byte) (int, error) {
	for f.left == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
		if f.larger {
			return 0, io.EOF
		}
	}
	n, err := f.src.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	return n, err
}

// begin asks for the memory of the next frame, if it needs more than all before it.
func (f *zstdFrames) begin() error {
	if f.left > 0 || f.inFrame {
		return nil
	}
	h, err := f.header()
	if err != nil {
		return err
	}
	f.larger = false
	return f.take(windowOf(h))
}

func (f *zstdFrames) take(window uint64) error {
	if window <= f.granted {
		return nil
	}
	if err := f.grow(int64(window - f.granted)); err != nil {
		return memoryError{err}
	}
	f.granted = window
	return nil
}

// header decodes the header of the next frame without consuming it.
func (f *zstdFrames) header() (*zstd.Header, error) {
	b, err := f.src.Peek(zstd.HeaderMaxSize) // less, at the end of the stream
	if len(b) == 0 || err != nil && err != io.EOF {
		return nil, err
	}
	var h zstd.Header
	if err := h.Decode(b); err == io.ErrUnexpectedEOF && len(b) == zstd.HeaderMaxSize {
		return nil, errors.New("a header without an end")
	} else if err != nil {
		return nil, err
	}
	if window := windowOf(&h); window > maxWindow {
		return nil, fmt.Errorf("a window of %d bytes is larger than %d", window, maxWindow)
	}
	return &h, nil
}

// windowOf returns how many bytes a frame may refer back.
func windowOf(h *zstd.Header) uint64 {
	switch {
	case h.Skippable:
		return 0
	case h.SingleSegment:
		return h.FrameContentSize
	}
	return h.WindowSize
}

// next sets left to the bytes before the next header.
func (f *zstdFrames) next() error {
	if f.inFrame {
		return f.block()
	}
	h, err := f.header()
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		f.left = int64(f.src.Buffered()) // a truncated header: the decoder would take an error here for the end
	case err != nil:
		return err
	case h.Skippable:
		f.left = 8 + int64(h.SkippableSize)
	case windowOf(h) > f.granted:
		f.larger = true
	default:
		f.left, f.inFrame, f.checksum = int64(h.HeaderSize), true, h.HasCheckSum
	}
	return nil
}

// block reads the header of a block. The decoder refuses a truncated or reserved one.
func (f *zstdFrames) block() error {
	const header = 3
	b, err := f.src.Peek(header)
	if len(b) < header {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	bits := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
	last, kind, size := bits&1 == 1, bits>>1&3, int64(bits>>3)
	if kind == 1 { // one byte, which is repeated
		size = 1
	}
	f.left = header + size
	if last {
		f.inFrame = false
		if f.checksum {
			f.left += 4
		}
	}
	return nil
}
