package admin

import (
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// An error of the admin endpoint passes with its message, its class and its cause, so that a command ends
// with the same exit code and the same advice when another process did the work.

// causeDomain marks the detail of a status that holds a cause.
const causeDomain = "tank"

// subjectKey is the key of the cause's subject in that detail.
const subjectKey = "subject"

// toStatus returns an error as gRPC sends it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	why := cause.Of(err)
	err = errgrpc.ToGRPC(err)
	if s, ok := status.FromError(err); ok && why.Kind != "" {
		detail := &errdetails.ErrorInfo{
			Domain: causeDomain, Reason: string(why.Kind), Metadata: map[string]string{subjectKey: why.Subject},
		}
		if detailed, derr := s.WithDetails(detail); derr == nil {
			return detailed.Err()
		}
	}
	return err
}

// native gives an error the class and the cause that it had on the other side, and the message, which names
// the class already.
func native(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	remote := remoteError{message: s.Message(), class: errgrpc.ToNative(err)}
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == causeDomain {
			remote.cause = cause.Cause{Kind: cause.Kind(info.GetReason()), Subject: info.GetMetadata()[subjectKey]}
		}
	}
	return remote
}

// remoteError is an error that another process returned.
type remoteError struct {
	message string
	class   error
	cause   cause.Cause
}

func (e remoteError) Error() string      { return e.message }
func (e remoteError) Unwrap() error      { return e.class }
func (e remoteError) Cause() cause.Cause { return e.cause }
