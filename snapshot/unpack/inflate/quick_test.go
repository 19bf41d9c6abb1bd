package inflate_test

import (
	"bytes"
	"testing"
	"io"
	"hash/crc32"
)

func TestLayersSame(t *testing.T) {
	blobs, names := layers(t)
	for i, blob := range blobs {
		var sums [3]uint32
		for d, dec := range decodersUnderTest {
			h := crc32.NewIEEE()
			n, err := dec.run(io.Writer(h), blob)
			must(t, err)
			_ = n
			sums[d] = h.Sum32()
		}
		if sums[0] != sums[2] { t.Errorf("%s differs", names[i]) }
	}
	_ = bytes.NewReader
}
