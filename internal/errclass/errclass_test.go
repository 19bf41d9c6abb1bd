package errclass

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestEnsure(t *testing.T) {
	for _, tc := range []struct {
		err, class error
	}{
		{nil, nil},
		{unix.EIO, errdefs.ErrInternal},
		{fs.ErrNotExist, errdefs.ErrInternal},
		{&fs.PathError{Op: "write", Path: "p", Err: unix.ENOSPC}, errdefs.ErrResourceExhausted},
		{fmt.Errorf("x: %w", unix.EDQUOT), errdefs.ErrResourceExhausted},
		{fmt.Errorf("%w: %w", unix.ENOSPC, errdefs.ErrUnavailable), errdefs.ErrUnavailable},
		{errors.Join(unix.EIO, errdefs.ErrAborted), errdefs.ErrAborted},
		{fmt.Errorf("x: %w", context.Canceled), context.Canceled},
	} {
		got := Ensure(tc.err)
		if Of(got) != tc.class || !errors.Is(got, tc.err) || tc.err != nil && got.Error() != tc.err.Error() {
			t.Errorf("%v: %v of class %v", tc.err, got, Of(got))
		}
		if tc.class != nil && !errors.Is(got, tc.class) {
			t.Errorf("%v: errors.Is does not find %v", tc.err, tc.class)
		}
		if again := Ensure(got); again != got {
			t.Errorf("%v: changed again", tc.err)
		}
	}
	if !errdefs.IsInternal(Ensure(unix.EIO)) || !errdefs.IsResourceExhausted(Ensure(unix.ENOSPC)) {
		t.Error("package errdefs does not know the classes")
	}
	if Of(errors.New("x")) != nil || Of(errdefs.ErrUnknown) != nil {
		t.Error("an error without a class has one")
	}
}
