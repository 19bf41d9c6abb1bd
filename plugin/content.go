package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// contentServer is containerd's content service with another Read and another Write, which copy less.
type contentServer struct {
	contentapi.ContentServer
	store content.Store
}

// Read sends the bytes of a blob from the offset on: at most size of them, or all if size is not positive.
// Offsets in the answers count from the first byte that is sent. A negative offset counts as 0. Read returns
// OutOfRange for an offset behind the end.
func (s *contentServer) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	d, err := digest.Parse(req.GetDigest())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "%v: %v", req.GetDigest(), err)
	}
	ra, err := s.store.ReaderAt(stream.Context(), ocispec.Descriptor{Digest: d})
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	defer ra.Close()
	offset := max(req.GetOffset(), 0)
	left := ra.Size() - offset
	if left < 0 {
		return status.Errorf(codes.OutOfRange, "read past object length %v bytes", ra.Size())
	}
	if req.GetSize() > 0 {
		left = min(left, req.GetSize())
	}
	for sent := int64(0); left > 0; {
		p := newPiece(sent, left)
		n, err := ra.ReadAt(*p.data, offset+sent)
		if n < len(*p.data) {
			p.pool.Put(p.data)
			if err == nil || errors.Is(err, io.EOF) {
				err = s.cut(stream.Context(), d, offset+sent+int64(n))
			}
			return errgrpc.ToGRPC(err)
		}
		if err := stream.SendMsg(p); err != nil {
			return err
		}
		sent, left = sent+int64(n), left-int64(n)
	}
	return nil
}

// cut returns the error for a blob that ended before its size: errdefs.ErrNotFound if the blob was removed
// meanwhile, because a decompressor would report an unexpected end as damaged content, and
// errdefs.ErrDataLoss otherwise.
func (s *contentServer) cut(ctx context.Context, d digest.Digest, at int64) error {
	if _, err := s.store.Info(ctx, d); errdefs.IsNotFound(err) {
		return err
	}
	return fmt.Errorf("blob %s: the file ends at %d bytes: %w", d, at, errdefs.ErrDataLoss)
}
