// Package retry decides whether a failed request to a registry is repeated, and how long to wait
// before the next attempt.
//
// It owns nothing on disk.
//
// Its invariant: only an error of class errdefs.ErrUnavailable is temporary, unless Permanent has
// marked it.
//
// The surprising rule: if a server asks in Retry-After for more than a minute, Tank does not wait.
// The error becomes permanent, and its text states the time after which a client may try again.
package retry

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

// permanentError is an error of class errdefs.ErrUnavailable that another attempt does not avoid.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// Permanent marks an error that another attempt would not avoid.
func Permanent(err error) error { return permanentError{err} }

// IsTemporary reports whether another attempt may succeed.
func IsTemporary(err error) bool {
	return errdefs.IsUnavailable(err) && !errors.As(err, new(permanentError))
}

const (
	// maxRetryAfter is the longest wait that a registry is granted.
	maxRetryAfter = time.Minute
	// unixTime is the least number in Retry-After that is a Unix time, which some registries send,
	// and not a number of seconds.
	unixTime = 1_000_000_000
	// maxWait bounds what is understood as a wait at all.
	maxWait = 366 * 24 * time.Hour
)

// retryAfterError is a temporary error for which the registry asked for a wait.
type retryAfterError struct {
	error
	wait time.Duration
}

func (e retryAfterError) Unwrap() error { return e.error }

// AsksToWait reports whether a server asked for a wait with Retry-After.
func AsksToWait(err error) bool { return errors.As(err, new(retryAfterError)) }

// WithRetryAfter adds to a temporary error the wait that the response asks for. If that is longer
// than a minute, the error becomes permanent.
func WithRetryAfter(err error, resp *http.Response) error {
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

// tryAgain makes err permanent and adds the time after which a client may try again.
func tryAgain(err error, now time.Time, wait time.Duration) error {
	wait = wait.Round(time.Second)
	return Permanent(fmt.Errorf("%w (the server asks clients to wait for %v: try again after %s)",
		err, wait, now.Add(wait).UTC().Format("2006-01-02 15:04:05 MST")))
}

// retryAfter parses the value of Retry-After: seconds or a date (RFC 9110 section 10.2.3), or a
// Unix time. It reports false for a value that is not a number, not in the future, or more than a
// year away.
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	var when time.Time
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		when = now.Add(time.Duration(min(seconds, unixTime)) * time.Second)
		if seconds >= unixTime {
			when = time.Unix(seconds, 0)
		}
	} else if when, err = http.ParseTime(s); err != nil {
		return 0, false
	}
	wait := when.Sub(now)
	return wait, wait > 0 && wait <= maxWait
}

// Policy bounds how often a request is repeated.
type Policy struct {
	// Attempts is the number of successive attempts without a new byte.
	Attempts int
	// Backoff is the wait before the second attempt. It doubles for each further one.
	Backoff time.Duration
	// Sleep waits for a duration, or until the context ends. nil: the function Sleep.
	Sleep func(context.Context, time.Duration) error
}

// Wait waits between attempt n (from 1), which failed with cause, and the next one: as long as the
// registry asked, or with exponential backoff and jitter. If the wait would exceed the deadline of
// the context, Wait returns an error at once.
func (p Policy) Wait(ctx context.Context, n int, cause error) error {
	wait := p.Backoff << min(n-1, 6)
	wait += time.Duration(rand.Int64N(int64(wait)/2 + 1))
	var asked retryAfterError
	if errors.As(cause, &asked) {
		if end, ok := ctx.Deadline(); ok && time.Until(end) < asked.wait {
			return tryAgain(cause, time.Now(), asked.wait)
		}
		wait = asked.wait + min(wait, time.Second) // so that clients with the same answer do not return at once
	}
	if p.Sleep != nil {
		return p.Sleep(ctx, wait)
	}
	return Sleep(ctx, wait)
}

// Sleep waits for a duration, or until the context ends, and then returns the error of the context.
func Sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
