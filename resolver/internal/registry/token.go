package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/internal/encoding"
	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Limits of the answer of a token server.
const (
	maxTokenAnswer = 256 << 10        // bytes of the JSON document
	maxToken       = 64 << 10         // bytes of the token, which is sent in a header
	defaultExpiry  = 60 * time.Second // if the server states none (distribution's token specification)
	maxExpiry      = time.Hour
	maxSkew        = 10 * time.Second // a token is not used in the last part of its life: maxSkew, at most a quarter
	maxEntries     = 1024
)

// TokenCache caches access tokens until they expire, and which authentication registries require.
// Any number of resolvers and goroutines may share it: an entry belongs to one registry, token
// server, service, scope and credential, so that no user gets a token of another one. It exists
// only in memory. Make it with NewTokenCache.
type TokenCache struct {
	mu           sync.Mutex // guards the fields below and what is in them
	tokens       map[tokenKey]*tokenEntry
	requirements map[repositoryKey]requirement
}

// NewTokenCache makes an empty cache.
func NewTokenCache() *TokenCache {
	return &TokenCache{tokens: map[tokenKey]*tokenEntry{}, requirements: map[repositoryKey]requirement{}}
}

type tokenKey struct {
	origin, realm, service, scope string
	identity                      string // of the credential; "" is anonymous
}

type tokenEntry struct {
	sem   chan struct{} // of capacity one; held while the token server is asked
	token string
	until time.Time
}

// repositoryKey names a repository of one registry.
type repositoryKey struct{ origin, repository string }

// requirement is the authentication that a registry requires for a repository.
type requirement struct {
	scheme                string // "bearer" or "basic"
	realm, service, scope string
}

func (c *TokenCache) requirement(p repositoryKey) (requirement, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.requirements[p]
	return d, ok
}

func (c *TokenCache) setRequirement(p repositoryKey, d requirement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.requirements) >= maxEntries {
		clear(c.requirements)
	}
	c.requirements[p] = d
}

func (c *TokenCache) dropRequirement(p repositoryKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.requirements, p)
}

// token returns the token of key: the cached one, or the one that ask returns with its life. Only
// one of several callers asks, and the others wait. fresh reports that the token was not cached.
func (c *TokenCache) token(ctx context.Context, key tokenKey, ask func() (string, time.Duration, error)) (
	token string, fresh bool, err error,
) {
	e := c.entry(key)
	select {
	case e.sem <- struct{}{}:
		defer func() { <-e.sem }()
	case <-ctx.Done():
		return "", false, ctx.Err()
	}
	c.mu.Lock()
	token, until := e.token, e.until
	c.mu.Unlock()
	if token != "" && time.Now().Before(until) {
		return token, false, nil
	}
	asked := time.Now() // the life of the token begins at the earliest possible time
	token, life, err := ask()
	if err != nil {
		return "", false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.token, e.until = token, asked.Add(life-min(maxSkew, life/4))
	return token, true, nil
}

func (c *TokenCache) entry(key tokenKey) *tokenEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.tokens[key]
	if e == nil {
		if len(c.tokens) >= maxEntries {
			clear(c.tokens) // callers that hold an entry continue to use it
		}
		e = &tokenEntry{sem: make(chan struct{}, 1)}
		c.tokens[key] = e
	}
	return e
}

// drop forgets a token that the registry refused, unless it has been replaced.
func (c *TokenCache) drop(key tokenKey, token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.tokens[key]; e != nil && e.token == token {
		e.token = ""
	}
}

// fetchToken fetches a token from a token server, within the document timeout.
func (a *authorizer) fetchToken(ctx context.Context, realm *url.URL, d requirement, cred auth.Credential) (
	token string, life time.Duration, err error,
) {
	bounded, done := retry.Within(ctx, time.Now().Add(a.client.opts.DocumentTimeout), true)
	defer done()
	token, life, err = a.askToken(bounded, realm, d, cred)
	if err != nil && retry.Expired(ctx, bounded) {
		err = retry.TimeoutError("token server "+realm.Host, a.client.opts.DocumentTimeout)
	}
	return token, life, err
}

func (a *authorizer) askToken(ctx context.Context, realm *url.URL, d requirement, cred auth.Credential) (
	string, time.Duration, error,
) {
	req, err := tokenRequest(ctx, realm, d, cred)
	if err != nil {
		return "", 0, fmt.Errorf("token server %s: %v: %w", realm.Host, err, errdefs.ErrInvalidArgument)
	}
	req.Header.Set("User-Agent", a.client.opts.UserAgent)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", "identity")
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	transports := a.endpoint.transportsFor(realm)
	resp, err := a.tokenClient(realm, cred).Do(req.WithContext(ctx))
	if err != nil {
		err = httperror.Network("token server "+realm.Host, err)
		transports.closeIdleAfter(ctx, err)
		return "", 0, err
	}
	resp.Body = watch(resp.Body, cancel, a.client.opts.StallTimeout)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", 0, tokenRefused(resp, realm.Host)
	}
	data, err := encoding.ReadAll(resp, "", maxTokenAnswer)
	if err != nil {
		if errdefs.IsDataLoss(err) {
			return "", 0, fmt.Errorf("token server %s: answer %w", realm.Host, err)
		}
		return "", 0, httperror.Network("token server "+realm.Host, err)
	}
	token, life, err := readToken(data)
	if err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	return token, life, nil
}

// tokenClient returns a client for one request to a token server. A request with a password or a
// refresh token follows redirects only within the origin of the realm. An anonymous request follows
// every redirect that a registry may use, because the realm may be a gateway in front of the token
// server.
func (a *authorizer) tokenClient(realm *url.URL, cred auth.Credential) *http.Client {
	check := func(next *http.Request, via []*http.Request) error {
		switch u := next.URL; {
		case len(via) >= maxRedirects:
			return errors.New("too many redirects")
		case u.User != nil, cred != (auth.Credential{}) && !sameOrigin(u, realm):
			return errors.New("redirect to another origin")
		case u.Scheme != "https" && via[len(via)-1].URL.Scheme == "https":
			return fmt.Errorf("redirect from https to %.20q", u.Scheme)
		}
		next.Header.Del("Referer")
		return nil
	}
	return &http.Client{Transport: endpointTransport{a.endpoint}, CheckRedirect: check}
}

// endpointTransport sends each request over the transport for its origin.
type endpointTransport struct{ *Endpoint }

func (t endpointTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.transportsFor(req.URL).first.RoundTrip(req)
}

// tokenRequest makes the request for a token: with a refresh token a POST (OAuth2), otherwise a
// GET, with basic authentication if cred has a user name.
func tokenRequest(ctx context.Context, realm *url.URL, d requirement, cred auth.Credential) (*http.Request, error) {
	scopes := strings.Fields(d.scope)
	if cred.IdentityToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "service": {d.service}, "client_id": {"tank"},
			"refresh_token": {cred.IdentityToken},
		}
		if len(scopes) > 0 {
			form.Set("scope", strings.Join(scopes, " "))
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	u := *realm
	q := u.Query()
	if d.service != "" {
		q.Set("service", d.service)
	}
	for _, s := range scopes {
		q.Add("scope", s)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && cred.Username != "" {
		req.SetBasicAuth(cred.Username, cred.Password)
	}
	return req, err
}

// tokenRefused is the error for an answer without a token. It does not contain the body, which may
// hold secrets.
func tokenRefused(resp *http.Response, host string) error {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be reused
	class := httperror.Class(resp.StatusCode)
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed:
		class = errdefs.ErrUnauthenticated
	}
	err := fmt.Errorf("token server %s: status %d: %w", host, resp.StatusCode, class)
	if errdefs.IsUnauthorized(class) {
		err = cause.Mark(err, cause.Unauthorized, "")
	} else {
		err = httperror.MarkStatus(err, resp.StatusCode, "token", host, true)
	}
	return retry.WithRetryAfter(err, resp)
}

// readToken returns the token in the answer of a token server, and its life.
func readToken(data []byte) (string, time.Duration, error) {
	var a struct {
		Token       string   `json:"token"`
		AccessToken string   `json:"access_token"`
		ExpiresIn   *float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(data, &a); err != nil {
		// The error does not contain the answer, which may hold a token.
		return "", 0, fmt.Errorf("the answer is not a token document: %w", errdefs.ErrDataLoss)
	}
	token := a.Token
	if token == "" {
		token = a.AccessToken
	}
	switch {
	case token == "":
		return "", 0, fmt.Errorf("the answer has no token: %w", errdefs.ErrUnauthenticated)
	case len(token) > maxToken:
		return "", 0, fmt.Errorf("token of %d bytes is larger than %d: %w", len(token), maxToken, errdefs.ErrDataLoss)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", 0, fmt.Errorf("the token has characters that a token must not have: %w", errdefs.ErrDataLoss)
	}
	life := defaultExpiry
	if a.ExpiresIn != nil {
		life = time.Duration(min(max(*a.ExpiresIn, 0), maxExpiry.Seconds()) * float64(time.Second))
	}
	return token, life, nil
}
