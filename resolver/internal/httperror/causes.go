package httperror

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// MarkStatus gives an error the cause of a status. host is the registry that was asked. login is
// false if a login does not help, as at a file server to which the registry redirects.
func MarkStatus(err error, status int, kind, host string, login bool) error {
	switch {
	case !login && (status == http.StatusUnauthorized || status == http.StatusForbidden):
		return cause.Mark(err, cause.RegistryFailed, host)
	case status == http.StatusNotFound || status == http.StatusGone:
		if kind == "manifests" {
			return cause.Mark(err, cause.Tag, host)
		}
		return cause.Mark(err, cause.Incomplete, host)
	case status == http.StatusUnauthorized:
		return cause.Mark(err, cause.Unauthorized, host)
	case status == http.StatusForbidden || status == http.StatusUnavailableForLegalReasons:
		return cause.Mark(err, cause.Forbidden, host)
	case status == http.StatusProxyAuthRequired:
		return cause.Mark(err, cause.Proxy, "")
	case status == http.StatusTooManyRequests:
		return cause.Mark(err, cause.RateLimited, host)
	case status == http.StatusRequestTimeout || status == http.StatusGatewayTimeout:
		return cause.Mark(err, cause.Timeout, "")
	}
	return cause.Mark(err, cause.RegistryFailed, host)
}

// wantsTLS are parts of the bodies with which servers (Go, nginx, Apache) answer a plain HTTP
// request to a TLS port, with status 400.
var wantsTLS = []string{
	"HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS port",
	"plain HTTP to an SSL-enabled server",
}

// ExpectsTLS reports whether an answer to a plain HTTP request means that the port expects TLS. It
// reads a part of the body.
func ExpectsTLS(resp *http.Response) bool {
	if resp.StatusCode != http.StatusBadRequest || resp.Request.URL.Scheme != "http" {
		return false
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	for _, text := range wantsTLS {
		if strings.Contains(string(body), text) {
			return true
		}
	}
	return false
}

// networkCause returns the cause of a request that got no answer, or whose body broke. It returns
// "" if err already has a cause, such as a lack of file descriptors.
func networkCause(err error) cause.Kind {
	var (
		timeout  net.Error
		op       *net.OpError
		dns      *net.DNSError
		host     x509.HostnameError
		invalid  x509.CertificateInvalidError
		untrust  x509.UnknownAuthorityError
		verify   *tls.CertificateVerificationError
		record   tls.RecordHeaderError
		alert    tls.AlertError
		mismatch = errors.Is(err, http.ErrSchemeMismatch)
	)
	switch {
	case errors.As(err, &op) && op.Op == "proxyconnect":
		return cause.Proxy
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return cause.CertificateExpired
	case errors.As(err, &host):
		return cause.CertificateName
	case errors.As(err, &untrust), errors.As(err, &invalid), errors.As(err, &verify):
		return cause.Certificate
	case errors.As(err, &record), mismatch:
		return cause.TLSToHTTP
	case errors.As(err, &alert):
		return cause.Handshake
	case strings.Contains(err.Error(), `malformed HTTP response "\x15\x03`): // a TLS alert
		return cause.HTTPToTLS
	case errors.As(err, &dns):
		return cause.DNS
	case errors.Is(err, unix.ECONNREFUSED):
		return cause.Refused
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.ENETDOWN),
		errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM): // by a local firewall
		return cause.Unreachable
	case errors.Is(err, ErrStalled), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return cause.Timeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET),
		errors.Is(err, unix.EPIPE):
		return cause.Broken
	case cause.Of(err).Kind != "":
		return ""
	}
	return cause.Network
}

// MarkNetwork gives err the cause that networkCause finds in origin. host is the one that was
// asked.
func MarkNetwork(err, origin error, host string) error {
	if kind := networkCause(origin); kind != "" {
		return cause.Mark(err, kind, host)
	}
	return err
}
