package plugin_test

import (
	"context"
	"io"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// TestRequestsWithoutParts calls every method of containerd's three services with an empty request,
// and methods with nested messages also with empty nested messages. No call panics, and each error
// has a class that the caller can act on.
func TestRequestsWithoutParts(t *testing.T) {
	requireRoot(t)
	w := start(t)
	mask := &fieldmaskpb.FieldMask{Paths: []string{"labels", "labels.x", "name", ""}}
	for _, tt := range []struct {
		service *grpc.ServiceDesc
		wants   map[string]codes.Code
		more    map[string][]proto.Message
	}{
		{&contentapi.Content_ServiceDesc, map[string]codes.Code{
			"Info": codes.InvalidArgument, "Update": codes.InvalidArgument, "Delete": codes.InvalidArgument,
			"Read": codes.InvalidArgument, "Status": codes.NotFound, "Abort": codes.NotFound,
			"Write": codes.InvalidArgument,
			"List":  codes.OK, "ListStatuses": codes.OK,
		}, map[string][]proto.Message{
			"Update": {
				&contentapi.UpdateRequest{UpdateMask: mask},
				&contentapi.UpdateRequest{Info: &contentapi.Info{}, UpdateMask: mask},
			},
		}},
		{&snapshotsapi.Snapshots_ServiceDesc, map[string]codes.Code{
			"Prepare": codes.InvalidArgument, "View": codes.InvalidArgument, "Commit": codes.NotFound,
			"Mounts": codes.NotFound, "Remove": codes.NotFound, "Stat": codes.NotFound, "Usage": codes.NotFound,
			"Update": codes.InvalidArgument,
			"List":   codes.OK, "Cleanup": codes.OK,
		}, map[string][]proto.Message{
			"Update": {&snapshotsapi.UpdateSnapshotRequest{UpdateMask: mask}},
		}},
		{&diffapi.Diff_ServiceDesc, map[string]codes.Code{
			"Apply": codes.InvalidArgument, "Diff": codes.Unimplemented,
		}, map[string][]proto.Message{
			"Apply": {&diffapi.ApplyRequest{SyncFs: true}},
		}},
	} {
		methods := map[string]*grpc.StreamDesc{}
		for _, m := range tt.service.Methods {
			methods[m.MethodName] = nil
		}
		for _, s := range tt.service.Streams {
			methods[s.StreamName] = &s
		}
		for method, stream := range methods {
			want, ok := tt.wants[method]
			if !ok {
				t.Errorf("%s: %s: the table has no such method", tt.service.ServiceName, method)
			}
			for _, req := range append([]proto.Message{&emptypb.Empty{}}, tt.more[method]...) {
				err := call(t.Context(), w.conn, stream, "/"+tt.service.ServiceName+"/"+method, req)
				if got := status.Code(err); got != want {
					t.Errorf("%s(%v): %v (%v), want %v", method, req, got, err, want)
				}
			}
		}
	}
	// An empty descriptor is valid but has no media type that the service applies.
	err := call(t.Context(), w.conn, nil, "/containerd.services.diff.v1.Diff/Apply",
		&diffapi.ApplyRequest{Diff: &types.Descriptor{}})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("apply of an empty descriptor: %v", err)
	}
	err = call(t.Context(), w.conn, nil, "/containerd.services.snapshots.v1.Snapshots/Update",
		&snapshotsapi.UpdateSnapshotRequest{Info: &snapshotsapi.Info{}, UpdateMask: mask})
	if c := status.Code(err); c != codes.NotFound && c != codes.InvalidArgument {
		t.Errorf("update of an empty info: %v", err)
	}
}

// call makes one call and reads all answers. A nil stream means a unary call.
func call(ctx context.Context, conn *grpc.ClientConn, stream *grpc.StreamDesc, method string, req proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if stream == nil {
		return conn.Invoke(ctx, method, req, &emptypb.Empty{})
	}
	s, err := conn.NewStream(ctx, stream, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(req); err != nil && err != io.EOF {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	for {
		if err := s.RecvMsg(&emptypb.Empty{}); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
