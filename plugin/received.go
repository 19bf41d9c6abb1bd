package plugin

import (
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tank-snapshotter/tank/internal/descriptors"
)

// fieldWritten is the field of a WriteContentRequest with the bytes of a blob.
const fieldWritten = 6

// receivedBuffers are as large as the messages that were received in them.
var receivedBuffers dirtyPool

// received is a WriteContentRequest whose bytes of a blob lie in a buffer that is used again: protocol
// buffers would copy them into memory of their own, which is cleared first and garbage afterwards.
type received struct {
	request contentapi.WriteContentRequest
	buffer  *[]byte
}

// UnmarshalBuffers decodes a request.
func (r *received) UnmarshalBuffers(data mem.BufferSlice) error {
	r.buffer = receivedBuffers.Get(data.Len())
	data.CopyTo(*r.buffer)
	var rest, written []byte // of a repeated field, the last one counts
	for b := *r.buffer; len(b) > 0; {
		number, kind, head := protowire.ConsumeTag(b)
		if head < 0 {
			return protowire.ParseError(head)
		}
		n := protowire.ConsumeFieldValue(number, kind, b[head:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		if number == fieldWritten && kind == protowire.BytesType {
			written, _ = protowire.ConsumeBytes(b[head:])
		} else {
			rest = append(rest, b[:head+n]...)
		}
		b = b[head+n:]
	}
	err := proto.Unmarshal(rest, &r.request)
	r.request.Data = written
	return err
}

// free returns the buffer to its pool. The bytes of the blob must not be used afterwards.
func (r *received) free() {
	if r.buffer != nil {
		receivedBuffers.Put(r.buffer)
		r.buffer, r.request.Data = nil, nil
	}
}

// writeStream is a stream of Write. Each request is valid until the next one is received.
type writeStream struct {
	contentapi.Content_WriteServer
	last *received
}

func (s *writeStream) Recv() (*contentapi.WriteContentRequest, error) {
	s.last.free()
	s.last = &received{}
	if err := s.RecvMsg(s.last); err != nil {
		return nil, err
	}
	return &s.last.request, nil
}

// Write calls containerd's handler, which no longer uses a request when it receives the next one. A blob
// that is being written needs an open file, so Write waits while the process has few file descriptors left.
func (s *contentServer) Write(stream contentapi.Content_WriteServer) error {
	_, release, err := descriptors.Process.Take(stream.Context(), descriptors.Download)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	defer release()
	w := &writeStream{stream, &received{}}
	defer func() { w.last.free() }()
	return s.ContentServer.Write(w)
}
