package rpc

import (
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// escapeMessage makes the message of an error printable, because clients write it to a terminal. containerd
// passes it on to ctr, for example.
func escapeMessage(err *error) {
	if *err == nil {
		return
	}
	s, ok := status.FromError(*err)
	switch {
	case !ok && errdefs.IsInternal(*err): // panics.Recover made it
		s = status.Convert(errgrpc.ToGRPC(*err))
	case !ok:
		s = status.FromContextError(*err) // as gRPC does
	}
	p := s.Proto()
	message := printable.Message(p.GetMessage())
	if ok && message == p.GetMessage() {
		return
	}
	p.Message = message
	*err = status.ErrorProto(p)
}
