package resolver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// repository is one repository with the hosts that may serve it, mirrors first.
type repository struct {
	*Resolver
	registry string // name in the reference, which mirrors are told
	path     string
	hosts    []docker.RegistryHost
}

// get asks one host for kind ("manifests" or "blobs") and object, from offset bytes on. The response has status 200 or 206, an identity
// encoding, and a body that fails when it stalls; the caller closes it.
func (p *repository) get(ctx context.Context, host docker.RegistryHost, kind, object, accept string, offset int64) (*http.Response, error) {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: path.Join("/", host.Path, p.path, kind, object)}
	if host.Host != p.registry && (p.registry != "docker.io" || host.Host != "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {p.registry}}.Encode() // a mirror of several registries has to be told which
	}
	ctx = docker.ContextWithAppendPullRepositoryScope(ctx, p.path)
	var responses []*http.Response
	for {
		resp, err := p.once(ctx, host, u.String(), accept, offset)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
				resp.Body.Close()
				return nil, fmt.Errorf("%s %s from %s: content encoding %q was not asked for: %w", kind, object, host.Host, e, errdefs.ErrDataLoss)
			}
			return resp, nil
		}
		answer := statusError(resp, kind, object)
		resp.Body.Close()
		// Only the registry itself may ask for a token. What a redirect led to may not: it would be handed the registry's.
		if resp.StatusCode != http.StatusUnauthorized || !sameOrigin(resp.Request.URL, &u) || len(responses) > 1 || host.Authorizer == nil {
			return nil, answer
		}
		responses = append(responses, resp)
		if err := host.Authorizer.AddResponses(ctx, responses); err != nil {
			if errdefs.IsNotImplemented(err) {
				return nil, answer
			}
			return nil, authError(host.Host, err)
		}
	}
}

// once sends one request and follows its redirects.
func (p *repository) once(ctx context.Context, host docker.RegistryHost, u, accept string, offset int64) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("request to %s: %v: %w", host.Host, err, errdefs.ErrInvalidArgument)
	}
	for key, values := range host.Header {
		req.Header[key] = append(req.Header[key], values...)
	}
	req.Header.Set("User-Agent", p.opts.UserAgent)
	req.Header.Set("Accept", accept)
	// Digests and sizes are those of the bytes on the wire. Saying so also keeps Go's transport from asking for gzip behind our back.
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	if host.Authorizer != nil {
		if err := host.Authorizer.Authorize(ctx, req); err != nil {
			cancel(nil)
			return nil, authError(host.Host, err)
		}
	}
	client := http.Client{Transport: host.Client.Transport, CheckRedirect: redirectPolicy(host.Header)}
	resp, err := client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, networkError(host.Host, err)
	}
	log.G(ctx).WithFields(log.Fields{"host": host.Host, "path": req.URL.Path, "status": resp.StatusCode, "offset": offset}).Debug("registry answered")
	resp.Body = watch(resp.Body, cancel, p.opts.StallTimeout)
	return resp, nil
}

// redirectPolicy lets no secret leave the origin (scheme, host, port) that it is for. Go's client keeps Authorization for other ports and for
// subdomains; and a chain that left the origin once is not trusted again when it comes back.
func redirectPolicy(secret http.Header) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		if s := req.URL.Scheme; s != "http" && s != "https" {
			return fmt.Errorf("redirect to scheme %q", s)
		}
		if req.URL.Scheme == "http" && via[0].URL.Scheme == "https" {
			return errors.New("redirect from https to http")
		}
		req.Header.Del("Referer") // signed addresses are secrets
		left := !sameOrigin(req.URL, via[0].URL)
		for _, v := range via[1:] {
			left = left || !sameOrigin(v.URL, via[0].URL)
		}
		if left {
			for _, key := range []string{"Authorization", "Proxy-Authorization", "Cookie", "Cookie2", "Www-Authenticate"} {
				req.Header.Del(key)
			}
			for key := range secret {
				req.Header.Del(key)
			}
		}
		return nil
	}
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}

// retryAfterError is a temporary fault for which the registry named a wait.
type retryAfterError struct {
	error
	wait time.Duration
}

func (e retryAfterError) Unwrap() error { return e.error }

// maxRetryAfter bounds what a registry's Retry-After can make us wait.
const maxRetryAfter = time.Minute

// statusError gives a response that is no success the class that its status stands for.
func statusError(resp *http.Response, kind, object string) error {
	var class error = errdefs.ErrUnknown
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound || s == http.StatusGone:
		class = errdefs.ErrNotFound
	case s == http.StatusUnauthorized:
		class = errdefs.ErrUnauthenticated
	case s == http.StatusForbidden || s == http.StatusUnavailableForLegalReasons:
		class = errdefs.ErrPermissionDenied
	case s == http.StatusRequestedRangeNotSatisfiable:
		class = errdefs.ErrOutOfRange
	case s == http.StatusTooManyRequests || s == http.StatusRequestTimeout || s >= 500:
		class = errdefs.ErrUnavailable
	}
	err := fmt.Errorf("%s %s from %s: status %s: %w", kind, object, resp.Request.URL.Host, resp.Status, class)
	if seconds, e := strconv.Atoi(resp.Header.Get("Retry-After")); e == nil && seconds >= 0 && errdefs.IsUnavailable(class) {
		return retryAfterError{err, min(time.Duration(seconds)*time.Second, maxRetryAfter)}
	}
	if when, e := http.ParseTime(resp.Header.Get("Retry-After")); e == nil && errdefs.IsUnavailable(class) {
		return retryAfterError{err, min(max(time.Until(when), 0), maxRetryAfter)}
	}
	return err
}

// networkError is what the transport failed with, without the address: after a redirect that may be a signed one.
func networkError(host string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("registry %s: %w", host, err)
	}
	return fmt.Errorf("registry %s: %v: %w", host, err, errdefs.ErrUnavailable)
}

// authError classifies what containerd's authorizer answers: a refusal, or a token server that could not be reached.
func authError(host string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("registry %s: token: %w", host, err)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("registry %s: token: %v: %w", host, err, errdefs.ErrUnauthenticated)
	case errors.As(err, &status) && status.StatusCode == http.StatusForbidden:
		return fmt.Errorf("registry %s: token server answers %s: %w", host, status.Status, errdefs.ErrPermissionDenied)
	case errors.As(err, &status) && status.StatusCode < 500 && status.StatusCode != http.StatusTooManyRequests:
		return fmt.Errorf("registry %s: token server answers %s: %w", host, status.Status, errdefs.ErrUnauthenticated)
	case errors.As(err, &status):
		return fmt.Errorf("registry %s: token server answers %s: %w", host, status.Status, errdefs.ErrUnavailable)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("registry %s: token: %v: %w", host, err, errdefs.ErrUnavailable)
}

// pause waits before attempt number n (from 1) is followed by another, as long as the registry asked for or with a growing, jittered delay.
func (r *Resolver) pause(ctx context.Context, n int, cause error) error {
	wait := r.opts.Backoff << min(n-1, 6)
	wait += time.Duration(rand.Int64N(int64(wait)/2 + 1))
	var asked retryAfterError
	if errors.As(cause, &asked) {
		wait = asked.wait + wait/2
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errStalled = errors.New("body stalled")

// watched is a body that is given up when it sends nothing for a while.
type watched struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func watch(body io.ReadCloser, cancel context.CancelCauseFunc, limit time.Duration) *watched {
	w := &watched{ReadCloser: body, cancel: cancel, limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	return w
}

// Read counts only the time spent waiting for the registry: a slow writer at our side must not end the download.
func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}
