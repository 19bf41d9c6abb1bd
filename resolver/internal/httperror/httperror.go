// Package httperror makes errors of what goes wrong with an HTTP request: a status, a connection, a certificate.
//
// It owns nothing on disk. Its invariant: an error has an errdefs class and a cause (internal/cause), and contains
// nothing that the server sent except the status, and no part of the URL except its host: a URL may be signed. The
// surprising rule: an error of a connection that the caller canceled has no class; it wraps context.Canceled.
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

// Class is the class that a status stands for.
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
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status == http.StatusTooEarly || status >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// Status gives a response that is no success the class that its status stands for. The reason phrase and the body are the other side's
// words, and not told.
func Status(resp *http.Response, kind, object string) error {
	err := fmt.Errorf("%s %s from %s: status %d %s: %w", kind, object, resp.Request.URL.Host, resp.StatusCode,
		http.StatusText(resp.StatusCode), Class(resp.StatusCode))
	return retry.WithRetryAfter(answered{err, resp.StatusCode}, resp)
}

// answered is the error for a status that is no success.
type answered struct {
	error
	status int
}

func (e answered) Unwrap() error { return e.error }

// ErrStalled is the cause of the end of a request whose body brought next to nothing for a while.
var ErrStalled = errors.New("body stalled")

// StatusCode returns the status that Status made err of.
func StatusCode(err error) (status int, ok bool) {
	var a answered
	ok = errors.As(err, &a)
	return a.status, ok
}

// Network is what the transport failed with, without the address: after a redirect that may be a signed one.
func Network(who string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, context.Canceled) && !errors.Is(err, ErrStalled) {
		return fmt.Errorf("%s: %w", who, err)
	}
	told := fmt.Errorf("%s: %w: %w", who, err, errdefs.ErrUnavailable)
	told = MarkNetwork(told, err, who[strings.LastIndexByte(who, ' ')+1:])
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return retry.Permanent(told)
	case cause.Is(told, cause.TLSToHTTP), cause.Is(told, cause.HTTPToTLS):
		return retry.Permanent(told)
	}
	return told
}
