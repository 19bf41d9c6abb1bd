package main

import (
	"errors"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// The exit codes, on which scripts rely. Package cause describes them.
const (
	exitOK       = cause.ExitOK
	exitOther    = cause.ExitOther
	exitUsage    = cause.ExitUsage
	exitNotFound = cause.ExitNotFound
	exitDenied   = cause.ExitDenied
	exitNetwork  = cause.ExitNetwork
	exitContent  = cause.ExitContent
	exitSignal   = 128 // plus the number of the signal that ended the command, as shells do
)

// exitCodes explains the exit codes in the program's help.
const exitCodes = `Exit codes:
  0    success
  1    this machine: a full disk, a missing permission, another process, a root of another user or newer version
  2    usage: the command line, a reference, a configuration file
  3    not found: the root, image, tag, platform or holder; with --offline also an image that was not pulled
  4    a registry wants a login, or refuses
  5    network: the registry can't be reached, fails, limits requests, or has a certificate that is not trusted
  6    content that fails verification or is not allowed, a damaged database, faults that check found
  130  ended by SIGINT (Ctrl-C)
  143  ended by SIGTERM; serve ends with 0 after both signals`

// hintFor returns advice about an error, "" if there is none. A hint of the error itself is more specific
// than the hint of its cause. The class of an error is no basis for a hint, because very different causes
// have the same class.
func hintFor(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	hint := cause.Of(err).Hint()
	for hint == "" && err != nil { // cause.Usage has no hint, but may hide a cause that has one, such as EACCES
		err = errors.Unwrap(err)
		hint = cause.Of(err).Hint()
	}
	return hint
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

// localError is an error of this machine's processes, files or sockets. Its exit code is 1 whatever its class
// is, because neither the network nor a registry caused it.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// exitCode returns the exit code for an error. The cause decides. If the cause is not known, the class decides.
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
	}
	if code, known := cause.Of(err).Exit(); known {
		return code
	}
	switch {
	case errdefs.IsDataLoss(err), errdefs.IsFailedPrecondition(err):
		return exitContent // checked first, because it may be joined with errors of other classes
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
