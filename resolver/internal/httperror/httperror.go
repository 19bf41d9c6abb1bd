// Package httperror makes the errors of HTTP requests: of a status, a connection or a certificate.
//
// It owns nothing on disk.
//
// Its invariant: an error has an errdefs class and a cause (internal/cause). It contains nothing
// that the server sent except the status, and no part of the URL except the host, because a URL may
// be signed.
//
// The surprising rule: the error of a request that the caller canceled has no class; it wraps
// context.Canceled.
package httperror

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Class returns the errdefs class of a status that is not a success.
func Class(status int) error {
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		return errdefs.ErrNotFound
	case status == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case status == http.StatusForbidden || status == http.StatusUnavailableForLegalReasons:
		return errdefs.ErrPermissionDenied
	case status == http.StatusRequestedRangeNotSatisfiable:
		return errdefs.ErrOutOfRange
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout ||
		status == http.StatusTooEarly || status >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// Status is the error for a response that is not a success. It leaves out the reason phrase and the
// body, because the server chooses them.
func Status(resp *http.Response, kind, object string) error {
	err := fmt.Errorf("%s %s from %s: status %d %s: %w", kind, object, resp.Request.URL.Host, resp.StatusCode,
		http.StatusText(resp.StatusCode), Class(resp.StatusCode))
	return retry.WithRetryAfter(statusError{err, resp.StatusCode}, resp)
}

// statusError is the error for a status.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

// ErrStalled is the cause with which a request is canceled whose body stalled.
var ErrStalled = errors.New("body stalled")

// StatusCode returns the status of an error that Status made.
func StatusCode(err error) (status int, ok bool) {
	var a statusError
	ok = errors.As(err, &a)
	return a.status, ok
}

// Network is the error for a request that got no answer, or whose body broke: err is the error of
// the transport, and peer names the other side, as in "registry example.com". The error leaves out
// the URL, which may be signed.
func Network(peer string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, context.Canceled) && !errors.Is(err, ErrStalled) {
		return fmt.Errorf("%s: %w", peer, err)
	}
	classed := fmt.Errorf("%s: %w: %w", peer, err, errdefs.ErrUnavailable)
	classed = MarkNetwork(classed, err, peer[strings.LastIndexByte(peer, ' ')+1:])
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return retry.Permanent(classed)
	case cause.Is(classed, cause.TLSToHTTP), cause.Is(classed, cause.HTTPToTLS):
		return retry.Permanent(classed)
	}
	return classed
}
