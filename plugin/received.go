package plugin

import (
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tank-snapshotter/tank/internal/descriptors"
)

// fieldWritten is where a WriteContentRequest has the bytes of a blob.
const fieldWritten = 6

// receivedBuffers are as large as what came in them.
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
	var rest, written []byte // of a field that comes twice the last counts
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

// free gives the buffer back. The bytes of the blob are not to be used after it.
func (r *received) free() {
	if r.buffer != nil {
		receivedBuffers.Put(r.buffer)
		r.buffer, r.request.Data = nil, nil
	}
}

// writeStream is a stream of Write whose requests are good until the next one is received.
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

// Write is containerd's handler. It no longer uses a request when it receives the next one. A blob that is
// written has a file open, for which Write waits when descriptors are few.
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
