// Package panics turns a panic into an error.
//
// Work that runs in a goroutine of its own, or on behalf of one of many clients, must not end the
// process: a fault that one layer, one registry or one request triggers is the error of that
// operation alone.
//
// The package owns nothing. Its invariant: the error is of class errdefs.ErrInternal, and the stack
// of the panic is in the log. The surprising rule: Recover has to be deferred itself. It recovers
// nothing when a deferred function calls it, because Go's recover works only in the deferred
// function.
package panics

import (
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Recover is deferred by a function. If that function panics, Recover replaces *err by an error of
// class errdefs.ErrInternal and logs the stack. The text what names the operation in both.
//
//	defer panics.Recover("blob "+digest, &err)
func Recover(what string, err *error) {
	if p := recover(); p != nil {
		log.L.Errorf("%s: panic: %v\n%s", what, p, debug.Stack())
		*err = fmt.Errorf("%s: panic: %v: %w", what, p, errdefs.ErrInternal)
	}
}

// Call returns the error of fn. If fn panics, Call does what Recover does and returns that error.
func Call(what string, fn func() error) (err error) {
	defer Recover(what, &err)
	return fn()
}
