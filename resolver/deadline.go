package resolver

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// documentTimeout is how long a manifest, an index, a config or a token may take, since the pull waits for it. A body
// that brings just enough not to count as stalled could take days.
const documentTimeout = 2 * time.Minute

// within bounds what one host may take of the time until end: all of it if it is the last host, half of it otherwise,
// so that a slow mirror leaves some for the hosts behind it. A zero end bounds nothing.
func within(ctx context.Context, end time.Time, last bool) (context.Context, context.CancelFunc) {
	if end.IsZero() {
		return ctx, func() {}
	}
	if !last {
		end = end.Add(-time.Until(end) / 2)
	}
	return context.WithDeadline(ctx, end)
}

// late reports whether bounded, a context of within, has ended because of its own bound and not because of ctx.
func late(ctx, bounded context.Context) bool { return ctx.Err() == nil && bounded.Err() != nil }

// lateError is the error for a host that took too long. The same request is not made again.
func lateError(host string, limit time.Duration) error {
	err := fmt.Errorf("%s: no complete answer in time (at most %v): %w",
		host, limit, errdefs.ErrUnavailable)
	return permanent(cause.Mark(err, cause.Timeout, ""))
}
