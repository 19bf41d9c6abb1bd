package rpc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

// TestMessagesAreEscaped: text of images can reach containerd's clients in error messages, without control characters.
func TestMessagesAreEscaped(t *testing.T) {
	const text = "layer x\x1b[31m\u009b\n"
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"with a class", errgrpc.ToGRPC(fmt.Errorf("%s: %w", text, errdefs.ErrNotFound))},
		{"without", errors.New(text)},
		{"long", errgrpc.ToGRPC(fmt.Errorf("%s: %w", strings.Repeat(text, 10000), errdefs.ErrNotFound))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.err
			escapeMessage(&err)
			before, after := status.Convert(tt.err), status.Convert(err)
			if strings.ContainsAny(after.Message(), "\x1b\u009b\n") || len(after.Message()) > 8<<10 {
				t.Errorf("message %.200q", after.Message())
			}
			found, want := errdefs.IsNotFound(errgrpc.ToNative(err)), errdefs.IsNotFound(errgrpc.ToNative(tt.err))
			if before.Code() != after.Code() || found != want {
				t.Errorf("class of %v, was that of %v", after.Code(), before.Code())
			}
		})
	}
	plain := errgrpc.ToGRPC(errdefs.ErrNotFound)
	same := plain
	if escapeMessage(&same); same != plain {
		t.Error("a message without controls was changed")
	}
}
