package retry

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// Within bounds the time that one host may take of the time until end: all of it for the last host,
// half of it for others, so that a slow mirror leaves time for the hosts after it. A zero end sets
// no bound.
func Within(ctx context.Context, end time.Time, last bool) (context.Context, context.CancelFunc) {
	if end.IsZero() {
		return ctx, func() {}
	}
	if !last {
		end = end.Add(-time.Until(end) / 2)
	}
	return context.WithDeadline(ctx, end)
}

// Expired reports whether bounded, a context of Within, has ended although ctx has not.
func Expired(ctx, bounded context.Context) bool { return ctx.Err() == nil && bounded.Err() != nil }

// TimeoutError is the error for a host that took too long. It is permanent.
func TimeoutError(host string, limit time.Duration) error {
	err := fmt.Errorf("%s: no complete answer in time (at most %v): %w",
		host, limit, errdefs.ErrUnavailable)
	return Permanent(cause.Mark(err, cause.Timeout, ""))
}
