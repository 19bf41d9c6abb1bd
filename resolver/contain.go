package resolver

import (
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// contain, deferred, turns a panic into an error of class errdefs.ErrInternal and logs where it came from. Downloads run beside the
// call that wants them, where nobody would recover; what one registry sends must not end a daemon.
func contain(what string, err *error) {
	if p := recover(); p != nil {
		log.L.Errorf("%s: panic: %v\n%s", what, p, debug.Stack())
		*err = fmt.Errorf("%s: panic: %v: %w", what, p, errdefs.ErrInternal)
	}
}
