package main

import (
	"errors"
	"os"

	"github.com/containerd/errdefs"
)

// The exit codes that scripts rely on.
const (
	exitOK       = 0
	exitOther    = 1
	exitUsage    = 2
	exitNotFound = 3 // not found, or not cached
	exitDenied   = 4
	exitNetwork  = 5
	exitContent  = 6 // content that fails verification or is not allowed, and faults found by check
)

// hints are what a user can do about each exit code, unless the command has a more specific hint.
var hints = map[int]string{
	exitNotFound: "Is the name right? `images` lists what is here.",
	exitDenied:   "Log in to the registry with `docker login`, whose credentials are used, or ask its owner for access.",
	exitNetwork:  "Check the network and the registry's name. --plain-http is for registries without TLS, --offline for what is here.",
	exitContent:  "Nothing that failed verification was kept. Try again later, or tell the operator of the registry.",
}

// refusedHere is the hint about a system call that was not permitted. The registry did not refuse it, so a login would
// not help.
const refusedHere = "This machine refused it, not the registry: check the owner of the root and the permissions of " +
	"this process."

// hintFor returns the hint for an error; "" when there is none.
func hintFor(err error) string {
	code := exitCode(err)
	if code == exitOther && errors.Is(err, os.ErrPermission) {
		return refusedHere
	}
	return hints[code]
}

// hinted is an error with a hint of its own.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// localError is about this machine's processes and sockets. Its exit code is 1 whatever class it has, because neither a
// network nor a registry caused it.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// exitCode maps an error to the code that the process ends with.
func exitCode(err error) int {
	var usage usageError
	var local localError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &local):
		return exitOther
	case errdefs.IsDataLoss(err), errdefs.IsFailedPrecondition(err):
		return exitContent // first, because such a fault may be joined with errors of other classes
	case errdefs.IsInvalidArgument(err):
		return exitUsage
	case errdefs.IsNotFound(err):
		return exitNotFound
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		return exitDenied
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		return exitNetwork
	}
	return exitOther
}
