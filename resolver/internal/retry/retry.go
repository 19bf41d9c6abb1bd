// Package retry decides whether a failed request to a registry is repeated, and how long to wait before.
//
// It owns nothing on disk. Its invariant: only an error of class errdefs.ErrUnavailable is temporary, and one that
// Permanent marked is not. The surprising rule: a server that asks in Retry-After for more than a minute is not waited
// for; its error becomes permanent, and its text contains the time after which a client may try again.
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

// permanentError is of class ErrUnavailable, but the same request would only meet it again.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// Permanent marks an error as one that another attempt cannot avoid.
func Permanent(err error) error { return permanentError{err} }

// IsTemporary reports whether another attempt may go better.
func IsTemporary(err error) bool {
	return errdefs.IsUnavailable(err) && !errors.As(err, new(permanentError))
}

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

// AsksToWait reports whether a server asked with Retry-After for a wait.
func AsksToWait(err error) bool { return errors.As(err, new(retryAfterError)) }

// WithRetryAfter adds to a temporary error the wait that the response asks for. The error is permanent if the wait is
// longer than a minute.
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

// tryAgain makes of err one that is not tried again, and adds when it may be.
func tryAgain(err error, now time.Time, wait time.Duration) error {
	wait = wait.Round(time.Second)
	return Permanent(fmt.Errorf("%w (the server asks clients to wait for %v: try again after %s)",
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

// Policy says how often a request is repeated, and after which waits.
type Policy struct {
	// Attempts bounds how often a request is tried while each try ends without a new byte.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles for each further one.
	Backoff time.Duration
	// Sleep waits. nil: until a timer or the context ends.
	Sleep func(context.Context, time.Duration) error
}

// Wait waits before attempt number n (from 1) is followed by another: as long as the registry asked for, or with a
// growing, jittered delay. A wait that does not end before the context does is not begun.
func (p Policy) Wait(ctx context.Context, n int, cause error) error {
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
	return Sleep(ctx, wait)
}

// Sleep waits until the time or the context is over.
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
