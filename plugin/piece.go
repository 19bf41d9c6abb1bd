package plugin

import (
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// What is read of blobs is sent without being copied in between, in messages that cost the receiver least.
// What is written is copied once, out of gRPC's frames (received.go).
//
// gRPC receives a message into a buffer of the next size of 4 KiB, 16 KiB, 32 KiB or 1 MiB, and clears all
// of it first. containerd asks for 32 KiB at a time when it exports and for 1 MiB when it pushes: a message
// with just that many bytes of a blob is a little larger than the buffer of that size, and costs the
// receiver the clearing of a MiB. So messages are cut to fit.
const (
	smallMessage = 32 << 10 // as sent
	largeMessage = 1 << 20
	frame        = 32 // bounds what a message has around the bytes of a blob
)

// The fields of ReadContentResponse.
const (
	fieldOffset = 1
	fieldData   = 2
)

// The buffers have largeMessage or smallMessage bytes. Their former content is overwritten or cut off.
var largeBuffers, smallBuffers dirtyPool

// dirtyPool is a mem.BufferPool that does not clear its buffers.
type dirtyPool struct{ sync.Pool }

func (p *dirtyPool) Get(size int) *[]byte {
	if b, ok := p.Pool.Get().(*[]byte); ok && cap(*b) >= size {
		*b = (*b)[:size]
		return b
	}
	b := make([]byte, size)
	return &b
}

func (p *dirtyPool) Put(b *[]byte) { p.Pool.Put(b) }

// piece is a ReadContentResponse. Its bytes are in a buffer that returns to its pool when they are sent.
type piece struct {
	offset int64
	data   *[]byte
	pool   *dirtyPool
}

// newPiece returns a piece with room for the next of the left bytes that are still to be sent.
func newPiece(offset, left int64) piece {
	pool, size := &largeBuffers, largeMessage
	if left <= smallMessage {
		pool, size = &smallBuffers, smallMessage
	}
	data := pool.Get(size - frame)
	*data = (*data)[:min(left, int64(size-frame))]
	return piece{offset, data, pool}
}

// MarshalBuffers encodes the message around the piece's bytes without copying them.
func (p piece) MarshalBuffers() (mem.BufferSlice, error) {
	var head []byte
	if p.offset != 0 {
		head = protowire.AppendTag(head, fieldOffset, protowire.VarintType)
		head = protowire.AppendVarint(head, uint64(p.offset))
	}
	head = protowire.AppendTag(head, fieldData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(*p.data)))
	return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(p.data, p.pool)}, nil
}
