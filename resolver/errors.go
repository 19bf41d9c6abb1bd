package resolver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// classOf is the class that a status stands for.
func classOf(status int) error {
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		return errdefs.ErrNotFound
	case status == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case status == http.StatusForbidden || status == http.StatusUnavailableForLegalReasons:
		return errdefs.ErrPermissionDenied
	case status == http.StatusRequestedRangeNotSatisfiable:
		return errdefs.ErrOutOfRange
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status == http.StatusTooEarly || status >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// statusError gives a response that is no success the class that its status stands for. The reason phrase and the body are the other side's
// words, and not told.
func statusError(resp *http.Response, kind, object string) error {
	err := fmt.Errorf("%s %s from %s: status %d %s: %w", kind, object, resp.Request.URL.Host, resp.StatusCode,
		http.StatusText(resp.StatusCode), classOf(resp.StatusCode))
	return withRetryAfter(err, resp)
}

// retryAfterError is a temporary fault for which the registry named a wait.
type retryAfterError struct {
	error
	wait time.Duration
}

func (e retryAfterError) Unwrap() error { return e.error }

// maxRetryAfter bounds what a registry's Retry-After can make us wait.
const maxRetryAfter = time.Minute

func withRetryAfter(err error, resp *http.Response) error {
	if !errdefs.IsUnavailable(err) {
		return err
	}
	if wait, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
		return retryAfterError{err, wait}
	}
	return err
}

// retryAfter reads seconds or a date (RFC 9110 section 10.2.3). What is past, negative or no number is no wait that was asked for.
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, false
	}
	if strings.Trim(s, "0123456789") == "" {
		seconds, err := strconv.ParseInt(s, 10, 64)
		if err != nil || seconds > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter, true
		}
		return time.Duration(seconds) * time.Second, seconds > 0
	}
	when, err := http.ParseTime(s)
	if err != nil || !when.After(now) {
		return 0, false
	}
	return min(when.Sub(now), maxRetryAfter), true
}

// permanentError is of class ErrUnavailable, but the same request would only meet it again.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func permanent(err error) error { return permanentError{err} }

// temporary says whether another attempt may go better.
func temporary(err error) bool {
	return errdefs.IsUnavailable(err) && !errors.As(err, new(permanentError))
}

// networkError is what the transport failed with, without the address: after a redirect that may be a signed one.
func networkError(who string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, context.Canceled) && !errors.Is(err, errStalled) {
		return fmt.Errorf("%s: %w", who, err)
	}
	told := fmt.Errorf("%s: %w: %w", who, err, errdefs.ErrUnavailable)
	if errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(refusedAddress)) {
		return permanent(told)
	}
	return told
}

// pause waits before attempt number n (from 1) is followed by another, as long as the registry asked for or with a growing, jittered delay.
func (r *Resolver) pause(ctx context.Context, n int, cause error) error {
	wait := r.opts.Backoff << min(n-1, 6)
	wait += time.Duration(rand.Int64N(int64(wait)/2 + 1))
	var asked retryAfterError
	if errors.As(cause, &asked) {
		wait = asked.wait + min(wait, time.Second) // all who were told the same need not come back at the same time
	}
	return r.sleep(ctx, wait)
}

func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
