package unpack_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// TestZstdFramesAgree: following the frames of a stream in front of the decoder changes nothing in what is accepted,
// refused and read of it, whatever is wrong with the stream.
func TestZstdFramesAgree(t *testing.T) {
	small := zstd.WithWindowSize(1 << 14)
	stream := join(
		zstdBytes(t, bytes.Repeat([]byte("a layer, "), 20), small), skippable("skipped"), windowFrame(20),
		zstdBytes(t, make([]byte, 20_000), zstd.WithEncoderCRC(false), small), // blocks of one repeated byte
		zstdBytes(t, []byte("one segment"), zstd.WithSingleSegment(true)), skippable(""),
	)
	alone := func(blob []byte) ([]byte, error) {
		z, err := zstd.NewReader(bytes.NewReader(blob), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<30))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return io.ReadAll(z)
	}
	check := func(what string, at int, blob []byte) {
		want, wantErr := alone(blob)
		z, err := unpack.Decompress("", bytes.NewReader(blob))
		var got []byte
		if err == nil {
			got, err = io.ReadAll(z)
			z.Close()
		}
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s at %d: %d bytes, %v; the decoder alone: %d bytes, %v", what, at, len(got), err, len(want), wantErr)
		}
	}
	check("a larger window", 0, join(stream, windowFrame(24), stream))
	for at := 4; at < len(stream); at++ {
		check("cut", at, stream[:at])
		check("a byte more", at, join(stream[:at], []byte{0x28}, stream[at:]))
		for _, flip := range []byte{1, 2, 8} {
			changed := bytes.Clone(stream)
			changed[at] ^= flip
			check("a changed bit", at, changed)
		}
	}
}
