package plugin

import (
	"fmt"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Bytes of blobs are most of what the socket carries, so their messages are kept from being copied and cleared in between.
//
// gRPC receives a message into a buffer of the next size of 4 KiB, 16 KiB, 32 KiB or 1 MiB, and clears all of it first. containerd asks
// for 32 KiB at a time when it exports and for 1 MiB when it pushes: a message with just that many bytes of a blob is a little larger
// than the buffer of that size, and costs the receiver the clearing of a MiB. So messages are cut to fit.
const (
	smallMessage = 32 << 10 // as sent
	largeMessage = 1 << 20
	frame        = 32 // bounds what a message has around the bytes of a blob
)

// The fields that hold the bytes of a blob, in ReadContentResponse and WriteContentRequest, and the offset in the first.
const (
	fieldReadOffset = 1
	fieldReadData   = 2
	fieldWriteData  = 6
)

// buffers are of largeMessage or of smallMessage bytes. What was in them is sent, or cut off.
var largeBuffers, smallBuffers dirtyPool

// dirtyPool is a mem.BufferPool that does not clear what it gives out.
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

// piece is a ReadContentResponse whose bytes are in a buffer that returns to its pool when they were sent.
type piece struct {
	offset int64
	data   *[]byte
	pool   *dirtyPool
}

// newPiece returns a piece with room for the next bytes, of which left are still to be sent.
func newPiece(offset, left int64) piece {
	pool, size := &largeBuffers, largeMessage
	if left <= smallMessage {
		pool, size = &smallBuffers, smallMessage
	}
	data := pool.Get(size - frame)
	*data = (*data)[:min(left, int64(size-frame))]
	return piece{offset, data, pool}
}

// messages encodes what the socket carries: protocol buffers, pieces of blobs, and JSON for Tank's own commands.
type messages struct{}

func (messages) Name() string { return protocodec.Name }

func (messages) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case piece:
		var head []byte
		if v.offset != 0 {
			head = protowire.AppendTag(head, fieldReadOffset, protowire.VarintType)
			head = protowire.AppendVarint(head, uint64(v.offset))
		}
		head = protowire.AppendTag(head, fieldReadData, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(*v.data)))
		return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(v.data, v.pool)}, nil
	case proto.Message:
		return encoding.GetCodecV2(protocodec.Name).Marshal(v)
	}
	b, err := codec{}.Marshal(v)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (messages) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *contentapi.WriteContentRequest:
		b, err := unmarshalAround(data, fieldWriteData, v)
		v.Data = b
		return err
	case *contentapi.ReadContentResponse:
		b, err := unmarshalAround(data, fieldReadData, v)
		v.Data = b
		return err
	case proto.Message:
		return encoding.GetCodecV2(protocodec.Name).Unmarshal(data, v)
	}
	return codec{}.Unmarshal(data.Materialize(), v)
}

// unmarshalAround decodes a message except for one field of bytes, which it returns: they are copied once, out of what was received.
func unmarshalAround(data mem.BufferSlice, field protowire.Number, m proto.Message) (b []byte, err error) {
	all := make([]byte, data.Len())
	data.CopyTo(all)
	rest := make([]byte, 0, 4*frame)
	for at := all; len(at) > 0; {
		number, kind, n := protowire.ConsumeTag(at)
		if n < 0 {
			return nil, fmt.Errorf("message: %w", protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(number, kind, at[n:])
		if size < 0 {
			return nil, fmt.Errorf("message: %w", protowire.ParseError(size))
		}
		if number == field && kind == protowire.BytesType {
			b, _ = protowire.ConsumeBytes(at[n:]) // the last one counts
		} else {
			rest = append(rest, at[:n+size]...)
		}
		at = at[n+size:]
	}
	return b, proto.Unmarshal(rest, m)
}
