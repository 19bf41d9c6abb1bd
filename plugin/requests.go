package plugin

import (
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// checkRequest refuses a request without a message that containerd's service code uses without a check for nil.
func checkRequest(req any) error {
	missing := ""
	switch r := req.(type) {
	case *contentapi.UpdateRequest:
		if r.GetInfo() == nil {
			missing = "info"
		}
	case *snapshotsapi.UpdateSnapshotRequest:
		if r.GetInfo() == nil {
			missing = "info"
		}
	case *diffapi.ApplyRequest:
		if r.GetDiff() == nil {
			missing = "diff"
		}
	}
	if missing == "" {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "request: no field %q", missing)
}
