package snapshot

import (
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// contain, deferred, turns a panic into an error of class errdefs.ErrInternal and logs where it came from: nobody recovers
// for a goroutine that outlives its call, and what one layer does must not end a daemon.
func contain(what string, err *error) {
	if p := recover(); p != nil {
		log.L.Errorf("%s: panic: %v\n%s", what, p, debug.Stack())
		*err = fmt.Errorf("%s: panic: %v: %w", what, p, errdefs.ErrInternal)
	}
}

// contained calls fn and returns its error, or its panic as one.
func contained(what string, fn func() error) (err error) {
	defer contain(what, &err)
	return fn()
}
