package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// authorization is the authorization of one request to one registry: what the request presented,
// and how to go on when the registry refuses it. A nil authorization presents nothing.
type authorization struct {
	auth       *authorizer
	repository string
	query      string // tells a mirror of several registries which one is meant
	presented  presented
}

// authorize sets the header Authorization that the registry is known to require.
func (p *authorization) authorize(ctx context.Context, h http.Header) (err error) {
	if p != nil {
		p.presented, err = p.auth.authorize(ctx, h, p.repository)
	}
	return err
}

// refused handles an answer that is not a success; answer is the error for it. It returns nil if
// the request should be repeated, because the registry's requirement is known now.
func (p *authorization) refused(ctx context.Context, resp *http.Response, answer error) error {
	switch {
	case p == nil, p.presented.configured:
		return answer
	case resp.StatusCode == http.StatusUnauthorized:
	case resp.StatusCode == http.StatusForbidden && p.presented.cached():
		// The token may be older than a permission of the user, or the registry answers 403 to an
		// expired token.
	default:
		return p.explain(answer)
	}
	h := resp.Header
	if !p.presented.used && len(challenges(h)) == 0 {
		h = p.ping(ctx) // a gateway may drop the challenge, or send the 401 itself
	}
	retry, err := p.auth.challenged(ctx, h, p.repository, p.presented)
	switch {
	case err != nil:
		return p.auth.explain(p.presented, fmt.Errorf("%w: %w", answer, err))
	case !retry:
		return p.explain(answer)
	}
	return nil
}

// explain adds to a refusal why the request did not present more.
func (p *authorization) explain(answer error) error {
	if p.auth.via != "" && errdefs.IsUnauthorized(answer) {
		answer = fmt.Errorf("%w (%s redirects to this registry, which gets no credentials)", answer, p.auth.via)
		return cause.Mark(answer, cause.Redirected, p.auth.endpoint.Host)
	}
	return p.auth.explain(p.presented, answer)
}

// ping asks the root of the registry's API for a challenge. It returns the headers of a 401, nil
// for any other answer.
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
		return nil // the caller reports the answer to the request itself
	}
	drain(resp)
	if resp.StatusCode != http.StatusUnauthorized {
		return nil
	}
	return resp.Header
}
