package plugin

import (
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// escapeMessage makes the message of an error printable: containerd passes it to clients such as ctr, which write it to
// a terminal.
func escapeMessage(err *error) {
	if *err == nil {
		return
	}
	s, ok := status.FromError(*err)
	if !ok {
		s = status.FromContextError(*err) // as gRPC does
	}
	p := s.Proto()
	if message := printable.Message(p.GetMessage()); message != p.GetMessage() {
		p.Message = message
		*err = status.ErrorProto(p)
	}
}
