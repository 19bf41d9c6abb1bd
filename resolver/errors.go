package resolver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
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
	return withRetryAfter(answered{err, resp.StatusCode}, resp)
}

// answered is the error for a status that is no success.
type answered struct {
	error
	status int
}

func (e answered) Unwrap() error { return e.error }

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
	told = markNetwork(told, err, who[strings.LastIndexByte(who, ' ')+1:])
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(refusedAddress)):
		return permanent(told)
	case cause.Is(told, cause.TLSToHTTP), cause.Is(told, cause.HTTPToTLS):
		return permanent(told)
	}
	return told
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
