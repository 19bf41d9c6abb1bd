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

// hints say what to do, where the command does not know it better.
var hints = map[int]string{
	exitNotFound: "Is the name right? `images` lists what is here.",
	exitDenied:   "Log in to the registry with `docker login`, whose credentials are used, or ask its owner for access.",
	exitNetwork:  "Check the network and the registry's name. --plain-http is for registries without TLS, --offline for what is here.",
	exitContent:  "Nothing of what failed verification was kept. Try again later, or tell who serves the image.",
}

// refusedHere is the hint about a system call that was not permitted. No registry is to blame for that, and no login helps.
const refusedHere = "This machine refused it, not the registry: look at who owns the root, and at what this process is allowed to do."

// hintFor returns what to do about an error; "" when there is nothing to say.
func hintFor(err error) string {
	code := exitCode(err)
	if code == exitOther && errors.Is(err, os.ErrPermission) {
		return refusedHere
	}
	return hints[code]
}

// hinted is an error that knows what to do about it.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// localError is about this machine's processes and sockets: whatever class it has, the network is not to blame.
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
		return exitContent // first: a fault stays one, whatever it was found on the way to
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
