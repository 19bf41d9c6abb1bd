package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// party is a registry that a request is sent to, directly or by a redirect, and the credentials that the request
// contained. A nil party gets none.
type authorization struct {
	auth       *authorizer
	repository string
	query      string // a mirror of several registries is told with it which one is meant
	presented  presented
}

// authorize sets the Authorization that the registry is known to ask for.
func (p *authorization) authorize(ctx context.Context, h http.Header) (err error) {
	if p != nil {
		p.presented, err = p.auth.authorize(ctx, h, p.repository)
	}
	return err
}

// refused learns from resp, which is no success; answer is the error for it. The result is nil if the request is worth
// another try.
func (p *authorization) refused(ctx context.Context, resp *http.Response, answer error) error {
	switch {
	case p == nil, p.presented.configured:
		return answer
	case resp.StatusCode == http.StatusUnauthorized:
	case resp.StatusCode == http.StatusForbidden && p.presented.cached():
		// A token may have been given before this user was allowed more, or the registry answers 403 when it has expired.
	default:
		return p.explain(answer)
	}
	h := resp.Header
	if !p.presented.used && len(challenges(h)) == 0 {
		h = p.ping(ctx) // a gateway may drop the challenge, or answer 401 by itself
	}
	again, err := p.auth.challenged(ctx, h, p.repository, p.presented)
	switch {
	case err != nil:
		return p.auth.explain(p.presented, fmt.Errorf("%w: %w", answer, err))
	case !again:
		return p.explain(answer)
	}
	return nil
}

// explain adds to a refusal why the registry was not shown more.
func (p *authorization) explain(answer error) error {
	if p.auth.via != "" && errdefs.IsUnauthorized(answer) {
		answer = fmt.Errorf("%w (%s redirects to it, and it gets no credentials)", answer, p.auth.via)
		return cause.Mark(answer, cause.Redirected, p.auth.endpoint.Host)
	}
	return p.auth.explain(p.presented, answer)
}

// ping asks the root of the registry's API how it wants to be asked, and returns the headers of the answer.
func (p *authorization) ping(ctx context.Context) http.Header {
	e := p.auth.endpoint
	u := e.origin()
	u.Path, u.RawQuery = e.Path+"/", p.query
	h := http.Header{}
	h.Set("User-Agent", p.auth.client.opts.UserAgent)
	h.Set("Accept-Encoding", "identity")
	repo := Repository{client: p.auth.client}
	resp, err := repo.once(ctx, e, e.direct.transport(u, 0), u, h)
	if err != nil {
		return nil // the answer to the request itself is the one that counts
	}
	drain(resp)
	if resp.StatusCode != http.StatusUnauthorized {
		return nil
	}
	return resp.Header
}
