// Package errclass gives errors of the operating system a class of github.com/containerd/errdefs.
//
// It owns nothing on disk.
//
// Its invariant: an error that has a class keeps it, and no error changes its text.
//
// The surprising rule: a missing file is of class internal. Only the caller knows whether it stands
// for something that a user asked for and that was not found; then the caller adds
// errdefs.ErrNotFound itself.
package errclass

import (
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Of returns the class of an error: one of the errors of package errdefs, context.Canceled or
// context.DeadlineExceeded. It returns nil if err is nil or has no class.
func Of(err error) error {
	if class := errdefs.Resolve(
		err); class != errdefs.ErrUnknown { //nolint:errorlint // Resolve returns the value itself
		return class
	}
	return nil
}

// Ensure returns err with a class. One without is errdefs.ErrResourceExhausted if a disk or a quota
// is full, and errdefs.ErrInternal otherwise. It returns nil for nil.
func Ensure(err error) error {
	switch {
	case err == nil || Of(err) != nil:
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return full{err}
	default:
		return internal{err}
	}
}

// Both types wrap one error, not an error and its class: code that takes joined errors apart would
// find the class among them. Package errdefs knows them by the methods ResourceExhausted and
// System.

type full struct{ error }

func (e full) Unwrap() error        { return e.error }
func (e full) Is(target error) bool { return target == errdefs.ErrResourceExhausted }
func (e full) ResourceExhausted()   {}

type internal struct{ error }

func (e internal) Unwrap() error        { return e.error }
func (e internal) Is(target error) bool { return target == errdefs.ErrInternal }
func (e internal) System()              {}
