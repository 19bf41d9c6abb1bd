package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Repository is a repository with the hosts that may serve it, mirrors first.
type Repository struct {
	client   *Client
	Registry string // the name in the reference; mirrors receive it as the parameter ns
	Path     string
	Hosts    []*Endpoint
}

// Retry returns how often a request to the repository is repeated.
func (p *Repository) Retry() retry.Policy { return p.client.opts.Retry }

// DocumentTimeout returns how long the download of a manifest or a config may take.
func (p *Repository) DocumentTimeout() time.Duration { return p.client.opts.DocumentTimeout }

// Range is a range of bytes of an object. The zero value is the whole object.
type Range struct {
	Start int64
	End   int64 // behind the last byte; 0: the end of the object
}

// Header returns the value of the HTTP header Range, "" for the whole object.
func (r Range) Header() string {
	switch {
	case r.End > 0:
		return "bytes=" + strconv.FormatInt(r.Start, 10) + "-" + strconv.FormatInt(r.End-1, 10)
	case r.Start > 0:
		return "bytes=" + strconv.FormatInt(r.Start, 10) + "-"
	}
	return ""
}

// maxTries bounds the requests of one Get. The registry and each target of a redirect may get
// three: without a token, with a token that has expired, and with a new one.
const maxTries = 3 * (1 + maxRedirectTargets)

// request is what a registry and the targets of its redirects are sent.
type request struct {
	common     http.Header      // for all hosts
	hostOnly   http.Header      // for the registry only; may contain secrets
	targets    *redirectTargets // tokens for other hosts; nil: none
	connection int              // number of the connection; see transportSet
}

// Get asks one host for an object of a kind ("manifests" or "blobs"). connection is the number of the connection, from
// 0. The response has the status 200 or 206, and its body fails when it stalls. The caller closes the body and handles
// its content encodings.
func (p *Repository) Get(ctx context.Context, host *Endpoint, kind, object, accept string, want Range,
	connection int,
) (*http.Response, error) {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: path.Join("/", host.Path, p.Path, kind, object)}
	if host.Host != p.Registry && (p.Registry != "docker.io" || host.Host != "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {p.Registry}}.Encode() // for a mirror of several registries
	}
	req := request{common: http.Header{}, targets: p.redirectTargets(host), connection: connection}
	req.common.Set("User-Agent", p.client.opts.UserAgent)
	req.common.Set("Accept", accept)
	// Digests and sizes describe the bytes without a content encoding.
	req.common.Set("Accept-Encoding", "identity")
	if r := want.Header(); r != "" {
		req.common.Set("Range", r)
	}
	for try := 1; ; try++ {
		req.hostOnly = http.Header{}
		for key, values := range host.Header {
			req.hostOnly[http.CanonicalHeaderKey(key)] = append([]string(nil), values...)
		}
		first := &authorization{auth: host.auth, repository: p.Path, query: u.RawQuery}
		if err := first.authorize(ctx, req.hostOnly); err != nil {
			return nil, err
		}
		resp, direct, err := p.send(ctx, host, &u, req)
		if err != nil {
			return nil, err
		}
		log.G(ctx).WithFields(log.Fields{
			"host": host.Host, "path": u.Path, "status": resp.StatusCode, "range": want.Header(),
		}).Debug("registry answered")
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		asks, asked, login := first, host.auth.host(), true
		if !direct {
			if asks = req.targets.target(resp.Request.URL); asks != nil {
				asked = asks.auth.host()
			}
			// A host that neither got a token nor sends a challenge is a file server.
			login = asks != nil && (asks.presented.used || len(challenges(resp.Header)) > 0)
		}
		answer := httperror.MarkStatus(httperror.Status(resp, kind, object), resp.StatusCode, kind, asked, login)
		if httperror.ExpectsTLS(resp) {
			text := "registry %s: the port expects TLS, but the request was plain HTTP: %w"
			answer = fmt.Errorf(text, host.Host, errdefs.ErrUnavailable)
			answer = retry.Permanent(cause.Mark(answer, cause.HTTPToTLS, ""))
		}
		drain(resp)
		err = asks.refused(ctx, resp, answer)
		if err == nil && try == maxTries {
			err = asks.explain(answer)
		}
		if err != nil {
			return nil, err
		}
	}
}

// maxRedirects bounds the redirects that one request follows.
const maxRedirects = 10

// send sends one request and follows its redirects. It sends the headers of hostOnly to the host
// only. After a redirect to another origin it does not send them any more, even if a later redirect
// returns to the host. direct reports that no redirect led to another origin.
//
// net/http would follow redirects as well, but it sends Authorization to other ports and to
// subdomains, and it uses one transport with one client certificate for all hosts.
func (p *Repository) send(ctx context.Context, host *Endpoint, u *url.URL, req request) (
	resp *http.Response, direct bool, err error,
) {
	direct = true
	for hop := 0; ; hop++ {
		h := req.common.Clone()
		set := host.others
		if direct {
			set = host.direct
			for key, values := range req.hostOnly {
				h[key] = values
			}
		} else if err := req.targets.target(u).authorize(ctx, h); err != nil {
			return nil, false, err
		}
		resp, err := p.once(ctx, host, set.transport(u, req.connection), u, h)
		if err != nil {
			set.closeIdleAfter(ctx, err)
			return nil, direct, err
		}
		set.recordProtocol(u, resp)
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, direct, nil
		}
		location := resp.Header.Get("Location")
		drain(resp)
		next, err := redirect(u, location)
		if err == nil && hop >= maxRedirects {
			err = fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if err != nil {
			err = fmt.Errorf("registry %s: %w: %w", host.Host, err, errdefs.ErrUnavailable)
			return nil, direct, retry.Permanent(cause.Mark(err, cause.RegistryFailed, host.Host))
		}
		direct = direct && sameOrigin(next, host.origin())
		u = next
	}
}

// redirect resolves a Location header relative to u. Its errors contain no part of the URL except
// the host, because the URL may be signed.
func redirect(u *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, errors.New("redirect without Location")
	}
	next, err := u.Parse(location)
	switch {
	case err != nil:
		return nil, errors.New("the Location of a redirect is not a URL")
	case next.Scheme != "http" && next.Scheme != "https" || next.Hostname() == "":
		return nil, fmt.Errorf("redirect to scheme %.20q", next.Scheme)
	case next.Scheme == "http" && u.Scheme == "https":
		return nil, fmt.Errorf("redirect from https to http at %s", next.Host)
	}
	next.User, next.Fragment = nil, ""
	return next, nil
}

// once sends one request and follows no redirect.
func (p *Repository) once(ctx context.Context, host *Endpoint, t http.RoundTripper, u *url.URL, h http.Header) (
	*http.Response, error,
) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("registry %s: the URL is not valid: %w", host.Host, errdefs.ErrInvalidArgument)
	}
	req.Header = h
	resp, err := t.RoundTrip(req)
	if err != nil {
		cancel(nil)
		return nil, httperror.Network("registry "+host.Host, err)
	}
	resp.Body = watch(resp.Body, cancel, p.client.opts.StallTimeout)
	return resp, nil
}

// drain reads the beginning of a body that nobody needs, so that its connection can be reused, and
// closes it.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
}

// NoHostError is the error for a registry whose hosts.toml allows pulls from none of its hosts.
func (p *Repository) NoHostError() error {
	err := fmt.Errorf("registry %s: hosts.toml allows pulls from no host: %w", p.Registry, errdefs.ErrNotFound)
	return cause.Mark(err, cause.Configuration, p.client.opts.HostsDir)
}
