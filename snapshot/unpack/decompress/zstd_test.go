package decompress_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestZstdFramesAgree checks that the code that parses the frames in front of the zstd decoder changes no result. For
// valid and damaged streams, the package accepts the same streams as the decoder alone, and returns the same bytes.
func TestZstdFramesAgree(t *testing.T) {
	small := zstd.WithWindowSize(1 << 14)
	stream := join(
		zstdBytes(t, bytes.Repeat([]byte("a layer, "), 20), small), skippable("skipped"), windowFrame(20),
		zstdBytes(t, make([]byte, 20_000), zstd.WithEncoderCRC(false), small), // blocks of one repeated byte
		zstdBytes(t, []byte("one segment"), zstd.WithSingleSegment(true)), skippable(""),
	)
	alone := func(blob []byte) ([]byte, error) {
		z, err := zstd.NewReader(bytes.NewReader(blob),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<30))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return io.ReadAll(z)
	}
	check := func(what string, at int, blob []byte) {
		want, wantErr := alone(blob)
		z, err := decompress.NewReader("", bytes.NewReader(blob))
		var got []byte
		if err == nil {
			got, err = io.ReadAll(z)
			z.Close()
		}
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s at %d: %d bytes, %v; the decoder alone: %d bytes, %v",
				what, at, len(got), err, len(want), wantErr)
		}
	}
	check("a larger window", 0, join(stream, windowFrame(24), stream))
	for at := 4; at < len(stream); at++ {
		check("cut", at, stream[:at])
		check("an inserted byte", at, join(stream[:at], []byte{0x28}, stream[at:]))
		for _, flip := range []byte{1, 2, 8} {
			changed := bytes.Clone(stream)
			changed[at] ^= flip
			check("a changed bit", at, changed)
		}
	}
}

// TestWindow checks that memory is requested before a zstd frame makes the decoder allocate it. Each frame that needs
// more than all frames before it causes a request, up to 1 GiB.
func TestWindow(t *testing.T) {
	skipped := []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}
	for _, row := range []struct {
		testName string
		blob     []byte
		grows    int64
		wantErr  error
	}{
		{"small", windowFrame(20), 8 << 20, nil},
		{"usual", windowFrame(23), 8 << 20, nil},
		{"large", windowFrame(27), 128 << 20, nil},
		{"large after a skippable frame", append(bytes.Clone(skipped), windowFrame(25)...), 32 << 20, nil},
		{"larger than the first", append(windowFrame(20), windowFrame(24)...), 16 << 20, nil},
		{"growing windows", join(windowFrame(24), skipped, windowFrame(25), windowFrame(20), windowFrame(26)),
			64 << 20, nil},
		{"of 1 GiB", windowFrame(30), 1 << 30, nil},
		{"too large", windowFrame(31), 8 << 20, stream.ErrInvalidLayer},
		{"too large after a small one", append(windowFrame(20), windowFrame(31)...), 8 << 20, stream.ErrInvalidLayer},
		{"a segment of 2 GiB", []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80, 1, 0, 0}, 8 << 20,
			stream.ErrInvalidLayer},
		{"reserved block", []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x50, 7, 0, 0}, 8 << 20, stream.ErrInvalidLayer},
		{"gzip", u.Gzip(t, nil), 0, nil},
	} {
		t.Run(row.testName, func(t *testing.T) {
			grown := int64(0)
			z, err := decompress.NewReaderWithin("", bytes.NewReader(row.blob),
				func(bytes int64) error { grown += bytes; return nil })
			if err == nil {
				_, err = new(bytes.Buffer).ReadFrom(z)
				z.Close()
			}
			if grown != row.grows || !errors.Is(err, row.wantErr) {
				t.Errorf("requested %d bytes, %v; want %d, %v", grown, err, row.grows, row.wantErr)
			}
		})
	}
	full := errors.New("full")
	for _, row := range []struct {
		blob   []byte
		enough int64
	}{
		{windowFrame(20), 8<<20 - 1},
		{windowFrame(27), 8 << 20},
		{append(windowFrame(20), windowFrame(27)...), 8 << 20},
	} {
		z, err := decompress.NewReaderWithin("", bytes.NewReader(row.blob), func(bytes int64) error {
			if row.enough -= bytes; row.enough < 0 {
				return full
			}
			return nil
		})
		if err == nil {
			_, err = new(bytes.Buffer).ReadFrom(z)
			z.Close()
		}
		if !errors.Is(err, full) || errors.Is(err, stream.ErrInvalidLayer) {
			t.Errorf("error when memory is refused: %v", err)
		}
	}
}
