package resolver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxRetryAfter is the longest wait that a registry may ask for and get. For a longer one nobody waits: the error
	// contains when to try again.
	maxRetryAfter = time.Minute
	// unixMoment is the least number in Retry-After that is a moment in Unix time, as some registries send it, and not a
	// number of seconds.
	unixMoment = 1_000_000_000
	// believableWait bounds what is taken for a wait at all.
	believableWait = 366 * 24 * time.Hour
)

// retryAfterError is a temporary fault for which the registry named a wait.
type retryAfterError struct {
	error
	wait time.Duration
}

func (e retryAfterError) Unwrap() error { return e.error }

func withRetryAfter(err error, resp *http.Response) error {
	if !errdefs.IsUnavailable(err) {
		return err
	}
	now := time.Now()
	wait, ok := retryAfter(resp.Header.Get("Retry-After"), now)
	switch {
	case !ok:
		return err
	case wait > maxRetryAfter:
		return tryAgain(err, now, wait)
	}
	return retryAfterError{err, wait}
}

// tryAgain makes of err one that is not tried again, and adds when it may be.
func tryAgain(err error, now time.Time, wait time.Duration) error {
	wait = wait.Round(time.Second)
	return permanent(fmt.Errorf("%w (the server asks clients to wait for %v: try again after %s)",
		err, wait, now.Add(wait).UTC().Format("2006-01-02 15:04:05 MST")))
}

// retryAfter reads seconds or a date (RFC 9110 section 10.2.3), or a moment in Unix time. What is past, negative, no
// number or more than a year away is no wait that was asked for.
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	var when time.Time
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		when = now.Add(time.Duration(min(seconds, unixMoment)) * time.Second)
		if seconds >= unixMoment {
			when = time.Unix(seconds, 0)
		}
	} else if when, err = http.ParseTime(s); err != nil {
		return 0, false
	}
	wait := when.Sub(now)
	return wait, wait > 0 && wait <= believableWait
}

// policy says how often a request is repeated, and after which waits.
type policy struct {
	// Attempts bounds how often a request is tried while each try ends without a new byte.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles for each further one.
	Backoff time.Duration
	// Sleep waits. nil: until a timer or the context ends.
	Sleep func(context.Context, time.Duration) error
}

// pause waits before attempt number n (from 1) is followed by another: as long as the registry asked for, or with a
// growing, jittered delay. A wait that does not end before the context does is not begun.
func (p policy) pause(ctx context.Context, n int, cause error) error {
	wait := p.Backoff << min(n-1, 6)
	wait += time.Duration(rand.Int64N(int64(wait)/2 + 1))
	var asked retryAfterError
	if errors.As(cause, &asked) {
		if end, ok := ctx.Deadline(); ok && time.Until(end) < asked.wait {
			return tryAgain(cause, time.Now(), asked.wait)
		}
		wait = asked.wait + min(wait, time.Second) // clients with the same answer should not all return at once
	}
	if p.Sleep != nil {
		return p.Sleep(ctx, wait)
	}
	return sleep(ctx, wait)
}
