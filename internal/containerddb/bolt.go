package containerddb

import (
	"encoding/binary"
	"hash/fnv"
	"io"
)

// The layout of a meta page of bbolt, after the header of the page.
const (
	metaHeader   = 16
	metaMagic    = 0xED0CDAED
	metaPageSize = 8
	metaTxID     = 48
	metaSum      = 56
	metaLength   = 64

	maxPage = 64 << 10
)

// lastTransaction returns the number of the last transaction, which it reads from the two meta pages at the
// beginning of a bbolt file. It returns 0 if the file begins with something else.
func lastTransaction(f io.ReaderAt) (last uint64) {
	b := make([]byte, metaHeader+metaLength)
	next := int64(0)
	for range 2 {
		if _, err := f.ReadAt(b, next); err != nil {
			return last
		}
		m := b[metaHeader:]
		if binary.NativeEndian.Uint32(m) != metaMagic {
			return last
		}
		h := fnv.New64a()
		h.Write(m[:metaSum])
		if h.Sum64() == binary.NativeEndian.Uint64(m[metaSum:]) {
			last = max(last, binary.NativeEndian.Uint64(m[metaTxID:]))
		}
		if next = int64(binary.NativeEndian.Uint32(m[metaPageSize:])); next < metaHeader+metaLength || next > maxPage {
			return last
		}
	}
	return last
}
