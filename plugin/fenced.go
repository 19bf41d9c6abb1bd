package plugin

import (
	"context"
	"fmt"
	"strings"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/tank-snapshotter/tank/internal/fence"
	"github.com/tank-snapshotter/tank/internal/interrupt"
)

// How many calls may be in flight: of those that read records, those that ask for a blob, those that look
// at snapshots, those that look at ingests, those that change something, those that unpack, and those that
// transfer a blob. Each may come to need a thread of its own. Calls that need no disk, or find in the kernel's
// caches what they look at, are apart from those that may hang.
const (
	mostRecords   = 128
	mostInfos     = 128
	mostLooks     = 128
	mostIngests   = 128
	mostChanges   = 256
	mostApplies   = 1024
	mostTransfers = 2048
	fewest        = 8 // where threads are short
)

// fenced are the interceptors that answer containerd's calls in time although a disk stands still
// (ADR 43). Calls of other services pass.
type fenced struct {
	fence       *fence.Fence
	disk        func() uint64 // Options.Disk; never nil
	copies      bool          // Options.Copies
	snapshotter snapshots.Snapshotter
	ending      sync.WaitGroup // see connections

	records, infos, looks, ingests, changes, applies, transfers *fence.Class
}

func newFenced(opts *Options) *fenced {
	const most = mostRecords + mostInfos + mostLooks + mostIngests + mostChanges + mostApplies + mostTransfers
	share := min(1, float64(fence.Threads())/2/most)
	class := func(name string, most int) *fence.Class {
		return fence.NewClass(name, max(fewest, int(float64(most)*share)))
	}
	f := &fenced{
		fence: fence.New(&fence.Options{Limit: opts.Limit}), disk: opts.Disk, copies: opts.Copies,
		records: class("records", mostRecords), infos: class("infos", mostInfos),
		looks: class("looks", mostLooks), ingests: class("ingests", mostIngests),
		changes: class("changes", mostChanges),
		applies: class("applies", mostApplies), transfers: class("transfers", mostTransfers),
	}
	if f.disk == nil {
		f.disk = func() uint64 { return 0 }
	}
	return f
}

// contentService begins the methods of the service.
const contentService = "/containerd.services.content.v1.Content/"

// ours reports whether a method is one of containerd's services.
func ours(method string) bool { return strings.HasPrefix(method, "/containerd.services.") }

// unary serves a call with one request and one answer.
func (f *fenced) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !ours(info.FullMethod) {
		return next(ctx, req)
	}
	f.known(ctx, req)
	work, steps := interrupt.Watch(ctx)
	c := f.call(work, info.FullMethod, req, steps)
	got, err := f.fence.Do(work, c, func(ctx context.Context) (any, error) { return next(ctx, req) })
	return got, errgrpc.ToGRPC(err)
}

// call describes a call to the fence. steps counts what the work does in proportion to bytes.
func (f *fenced) call(ctx context.Context, method string, req any, steps func() uint64) fence.Call {
	c := fence.Call{
		Name: method[strings.LastIndexByte(method, '/')+1:], Class: f.changes,
		Key: func() string { return keyOf(ctx, method, req) },
	}
	stepsAndDisk := func() uint64 { return steps() + f.disk() }
	switch r := req.(type) {
	case *snapshotsapi.StatSnapshotRequest:
		c.Class = f.records
	case *contentapi.InfoRequest:
		c.Class = f.infos
	case *contentapi.StatusRequest, *contentapi.ListStatusesRequest:
		c.Class = f.ingests
	case *snapshotsapi.UsageRequest, *snapshotsapi.MountsRequest:
		c.Class, c.Progress = f.looks, steps
	case *snapshotsapi.PrepareSnapshotRequest:
		f.makes(ctx, &c, r.GetKey(), steps)
	case *snapshotsapi.ViewSnapshotRequest:
		f.makes(ctx, &c, r.GetKey(), steps)
	case *snapshotsapi.CommitSnapshotRequest:
		c.Progress = stepsAndDisk
	case *diffapi.ApplyRequest:
		// Its layer may be unpacked on behalf of another call.
		c.Class, c.Progress = f.applies, func() uint64 { return steps() + interrupt.Shared() + f.disk() }
	}
	return c
}

// makes describes a call that makes the snapshot key. In overlay mode it copies nothing, so the limit
// holds while the disk is only slow; comparing or repairing a layer counts as progress.
func (f *fenced) makes(ctx context.Context, c *fence.Call, key string, steps func() uint64) {
	c.Progress = steps
	if f.copies {
		c.Progress = func() uint64 { return steps() + f.disk() }
	}
	c.Subject = subjectOf(ctx, key)
	removing := context.WithoutCancel(ctx)
	c.Undo = func(any) error { return f.snapshotter.Remove(removing, key) }
}

// known tells the fence that the caller uses a snapshot, which an earlier call may have made too late.
func (f *fenced) known(ctx context.Context, req any) {
	var key string
	switch r := req.(type) {
	case *snapshotsapi.StatSnapshotRequest:
		key = r.GetKey()
	case *snapshotsapi.MountsRequest:
		key = r.GetKey()
	case *snapshotsapi.UsageRequest:
		key = r.GetKey()
	case *snapshotsapi.CommitSnapshotRequest:
		key = r.GetKey()
	case *snapshotsapi.RemoveSnapshotRequest:
		key = r.GetKey()
	case *snapshotsapi.UpdateSnapshotRequest:
		key = r.GetInfo().GetName()
	default:
		return
	}
	f.fence.Known(func() string { return subjectOf(ctx, key) })
}

// callerOf names the process that makes a call, and its namespace.
func callerOf(ctx context.Context) string {
	p := processOf(ctx)
	namespace, _ := namespaces.Namespace(ctx)
	return fmt.Sprintf("%d %d %d %d %s\x00", p.PID, p.Started, p.Handle, p.UID, namespace)
}

func subjectOf(ctx context.Context, key string) string { return callerOf(ctx) + key }

// keyOf is the same for calls of one process with the same method and the same arguments.
func keyOf(ctx context.Context, method string, req any) string {
	m, ok := req.(proto.Message)
	if !ok {
		return ""
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Sprintf("%p", req)
	}
	return callerOf(ctx) + method + "\x00" + string(b)
}

// stream serves a call with a stream of requests or answers.
func (f *fenced) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if !ours(info.FullMethod) {
		return next(srv, stream)
	}
	ctx, steps := interrupt.Watch(stream.Context())
	c := fence.Call{Name: info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:], Class: f.records}
	switch info.FullMethod {
	case contentService + "Read", contentService + "Write":
		c.Class, c.Progress = f.transfers, func() uint64 { return steps() + f.disk() }
	}
	fenced := &fencedStream{stream, &fence.Turns{}, func() context.Context { return ctx }}
	err := f.fence.Stream(ctx, c, fenced.turns, func() error { return next(srv, fenced) })
	return errgrpc.ToGRPC(err)
}

// fencedStream is a stream that its handler may use after the call was answered.
type fencedStream struct {
	grpc.ServerStream
	turns   *fence.Turns
	context func() context.Context
}

// Context returns the context of the call.
func (s *fencedStream) Context() context.Context { return s.context() }

// SendMsg sends an answer.
func (s *fencedStream) SendMsg(m any) error {
	return s.turns.Client(func() error { return s.ServerStream.SendMsg(m) })
}

// RecvMsg receives a request.
func (s *fencedStream) RecvMsg(m any) error {
	return s.turns.Client(func() error { return s.ServerStream.RecvMsg(m) })
}
