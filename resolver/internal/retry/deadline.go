package retry

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// Within bounds what one host may take of the time until end: all of it if it is the last host, half of it otherwise,
// so that a slow mirror leaves some for the hosts behind it. A zero end bounds nothing.
func Within(ctx context.Context, end time.Time, last bool) (context.Context, context.CancelFunc) {
	if end.IsZero() {
		return ctx, func() {}
	}
	if !last {
		end = end.Add(-time.Until(end) / 2)
	}
	return context.WithDeadline(ctx, end)
}

// Expired reports whether bounded, a context of Within, has ended because of its own bound and not because of ctx.
func Expired(ctx, bounded context.Context) bool { return ctx.Err() == nil && bounded.Err() != nil }

// TimeoutError is the error for a host that took too long. The same request is not made again.
func TimeoutError(host string, limit time.Duration) error {
	err := fmt.Errorf("%s: no complete answer in time (at most %v): %w",
		host, limit, errdefs.ErrUnavailable)
	return Permanent(cause.Mark(err, cause.Timeout, ""))
}
