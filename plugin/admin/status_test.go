package admin

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// TestStatusKeepsCause shows that an error keeps its text, class and cause on its way through the
// admin endpoint.
func TestStatusKeepsCause(t *testing.T) {
	for _, tc := range []struct {
		err   error
		class error
		want  cause.Cause
	}{
		{cause.Mark(fmt.Errorf("x: %w", errdefs.ErrNotFound), cause.Tag, "host"), errdefs.ErrNotFound,
			cause.Cause{Kind: cause.Tag, Subject: "host"}},
		{fmt.Errorf("x: %w", unix.ENOSPC), errdefs.ErrUnknown, cause.Cause{Kind: cause.DiskFull}},
		{fmt.Errorf("x: %w", errdefs.ErrUnavailable), errdefs.ErrUnavailable, cause.Cause{}},
		{fmt.Errorf("%w: %w", errdefs.ErrUnavailable, errdefs.ErrDataLoss), errdefs.ErrDataLoss, cause.Cause{}},
		{errors.Join(errors.New("x"), cause.Mark(errors.New("y"), cause.Database, "/r")), errdefs.ErrUnknown,
			cause.Cause{Kind: cause.Database, Subject: "/r"}},
		{context.Canceled, context.Canceled, cause.Cause{}},
	} {
		sent := toStatus(tc.err)
		got := native(status.ErrorProto(status.Convert(sent).Proto()))
		if !errors.Is(got, tc.class) || cause.Of(got) != tc.want {
			t.Errorf("%v: %v of %v", tc.err, got, cause.Of(got))
		}
	}
	if toStatus(nil) != nil || native(nil) != nil {
		t.Error("nil became an error")
	}
}
