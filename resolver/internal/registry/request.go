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

// Repository is one repository with the hosts that may serve it, mirrors first.
type Repository struct {
	client   *Client
	Registry string // name in the reference, which mirrors are told
	Path     string
	Hosts    []*Endpoint
}

// Retry says how often a request to the repository is repeated.
func (p *Repository) Retry() retry.Policy { return p.client.opts.Retry }

// DocumentTimeout is how long a document of the repository may take.
func (p *Repository) DocumentTimeout() time.Duration { return p.client.opts.DocumentTimeout }

// Range is the part of an object that a request asks for: all of it, the bytes from start on, or those before end too.
type Range struct {
	Start int64
	End   int64 // behind the last byte; 0 is the object's end
}

// Header returns the value of the header Range, "" for the whole object.
func (s Range) Header() string {
	switch {
	case s.End > 0:
		return "bytes=" + strconv.FormatInt(s.Start, 10) + "-" + strconv.FormatInt(s.End-1, 10)
	case s.Start > 0:
		return "bytes=" + strconv.FormatInt(s.Start, 10) + "-"
	}
	return ""
}

// maxTries bounds the requests of one get. Each registry on the way may be asked without a token, with one that turns
// out to be stale, and with a fresh one.
const maxTries = 3 * (1 + maxRedirectTargets)

// request is what a registry and those that it redirects to are sent.
type request struct {
	common     http.Header      // for everybody
	hostOnly   http.Header      // for the registry alone; may have secrets
	targets    *redirectTargets // tokens for others; nil: none
	connection int              // requests of different lanes do not share a connection
}

// Get asks one host for kind ("manifests" or "blobs") and object. The response has status 200 or 206, and a body that
// fails when it stalls; the caller closes it, and looks at its encodings.
func (p *Repository) Get(ctx context.Context, host *Endpoint, kind, object, accept string, want Range, lane int) (*http.Response, error) {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: path.Join("/", host.Path, p.Path, kind, object)}
	if host.Host != p.Registry && (p.Registry != "docker.io" || host.Host != "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {p.Registry}}.Encode() // a mirror of several registries has to be told which
	}
	req := request{common: http.Header{}, targets: p.redirectTargets(host), connection: lane}
	req.common.Set("User-Agent", p.client.opts.UserAgent)
	req.common.Set("Accept", accept)
	// Digests and sizes are those of the bytes on the wire.
	req.common.Set("Accept-Encoding", "identity")
	if r := want.Header(); r != "" {
		req.common.Set("Range", r)
	}
	for try := 1; ; try++ {
		req.hostOnly = http.Header{}
		for key, values := range host.Header {
			req.hostOnly[http.CanonicalHeaderKey(key)] = append([]string(nil), values...)
		}
		own := &authorization{auth: host.auth, repository: p.Path, query: u.RawQuery}
		if err := own.authorize(ctx, req.hostOnly); err != nil {
			return nil, err
		}
		resp, home, err := p.send(ctx, host, &u, req)
		if err != nil {
			return nil, err
		}
		log.G(ctx).WithFields(log.Fields{"host": host.Host, "path": u.Path, "status": resp.StatusCode, "range": want.Header()}).Debug("registry answered")
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		asks, asked, login := own, host.auth.host(), true
		if !home {
			if asks = req.targets.target(resp.Request.URL); asks != nil {
				asked = asks.auth.host()
			}
			login = asks != nil && (asks.presented.used || len(challenges(resp.Header)) > 0) // else it serves files
		}
		answer := httperror.MarkStatus(httperror.Status(resp, kind, object), resp.StatusCode, kind, asked, login)
		if httperror.ExpectsTLS(resp) {
			text := "registry %s: it speaks TLS, and HTTP without TLS was spoken to it: %w"
			answer = retry.Permanent(cause.Mark(fmt.Errorf(text, host.Host, errdefs.ErrUnavailable), cause.HTTPToTLS, ""))
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

// send sends one request and follows its redirects. The headers of the host's own go to that host alone. Once a
// redirect has led to another host they are sent no more, even if a later one leads back. home is true if no redirect
// led away.
//
// net/http would follow by itself, but it keeps Authorization for other ports and for subdomains, and knows one transport with one client
// certificate for all.
func (p *Repository) send(ctx context.Context, host *Endpoint, u *url.URL, req request) (
	resp *http.Response, home bool, err error,
) {
	home = true
	for hop := 0; ; hop++ {
		h := req.common.Clone()
		way := host.others
		if home {
			way = host.direct
			for key, values := range req.hostOnly {
				h[key] = values
			}
		} else if err := req.targets.target(u).authorize(ctx, h); err != nil {
			return nil, false, err
		}
		resp, err := p.once(ctx, host, way.transport(u, req.connection), u, h)
		if err != nil {
			way.closeIdleAfter(ctx, err)
			return nil, home, err
		}
		way.recordProtocol(u, resp)
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, home, nil
		}
		location := resp.Header.Get("Location")
		drain(resp)
		next, err := redirect(u, location)
		if err == nil && hop >= maxRedirects {
			err = fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if err != nil {
			err = fmt.Errorf("registry %s: %w: %w", host.Host, err, errdefs.ErrUnavailable)
			return nil, home, retry.Permanent(cause.Mark(err, cause.RegistryFailed, host.Host))
		}
		home = home && sameOrigin(next, host.origin())
		u = next
	}
}

// redirect is where location leads from u. Its errors tell no part of a signed address but the host.
func redirect(u *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, errors.New("redirect to nowhere")
	}
	next, err := u.Parse(location)
	switch {
	case err != nil:
		return nil, errors.New("redirect to what is not a URL")
	case next.Scheme != "http" && next.Scheme != "https" || next.Hostname() == "":
		return nil, fmt.Errorf("redirect to scheme %.20q", next.Scheme)
	case next.Scheme == "http" && u.Scheme == "https":
		return nil, fmt.Errorf("redirect from https to http at %s", next.Host)
	}
	next.User, next.Fragment = nil, ""
	return next, nil
}

// once sends one request without following anything.
func (p *Repository) once(ctx context.Context, host *Endpoint, t http.RoundTripper, u *url.URL, h http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("registry %s: not a request: %w", host.Host, errdefs.ErrInvalidArgument)
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

// drain reads a little of an answer that is of no interest, so that its connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
}

// NoHostError is the error for a registry whose hosts.toml allows to pull from none of its hosts.
func (p *Repository) NoHostError() error {
	err := fmt.Errorf("registry %s: hosts.toml allows pulls from no host: %w", p.Registry, errdefs.ErrNotFound)
	return cause.Mark(err, cause.Configuration, p.client.opts.HostsDir)
}
