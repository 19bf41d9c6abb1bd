package resolver

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// redirectTo redirects requests with part to another repository of another registry.
func redirectTo(status int, part, host, repository string) registrytest.Fault {
	return registrytest.On(part, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Location", "http://"+host+strings.Replace(r.URL.Path, "/v2/x/", "/v2/"+repository+"/", 1))
		w.WriteHeader(status)
		return true
	})
}

// TestGuestToken checks a registry that redirects to another one which requires an anonymous token
// of its own. What the first registry gets is not sent to the second.
func TestGuestToken(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"/v2/", "/manifests/", "/blobs/"} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			t.Run(fmt.Sprint(part, status), func(t *testing.T) {
				t.Parallel()
				front, back := registrytest.New(t), registrytest.New(t)
				image(front)
				_, data := image(back)
				own, others := registrytest.NewTokenServer(t), registrytest.NewTokenServer(t)
				own.Users = map[string]string{"alice": "se:cret"}
				front.Guard = registrytest.First(own.Guard, redirectTo(status, part, back.Host, "org/x"))
				var leaked atomic.Value
				back.Guard = func(w http.ResponseWriter, r *http.Request) bool {
					// Without a scope, the client has to know the repository, whose name is
					// different here.
					if a := r.Header.Get("Authorization"); a != "" && others.Guard(discard{}, r) {
						leaked.Store(a)
					}
					return others.Guard(scopeless{w}, r)
				}
				shared := NewTokenCache()
				for range 2 {
					r := newResolver(t, func(o *Options) {
						o.Tokens, o.Credentials = shared, always(alice)
						o.Realms = map[string][]string{front.Host: {registrytest.MustURL(own.URL).Host}}
					})
					store := newStore(t)
					if _, err := pull(t.Context(), r, store, front.Host+"/x:1", nil); err != nil {
						t.Fatal(err)
					}
					holds(t, store, data[0])
				}
				if leaked.Load() != nil {
					t.Errorf("the other registry was shown %v", leaked.Load())
				}
				requests := others.Requests()
				if len(requests) != 1 || requests[0].Authorization != "" ||
					requests[0].Form.Get("scope") != "repository:org/x:pull" {
					t.Errorf("tokens of the other registry: %+v", requests)
				}
			})
		}
	}
}

// discard is a response writer that drops the response.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// scopeless drops the scope of challenges.
type scopeless struct{ http.ResponseWriter }

func (s scopeless) WriteHeader(status int) {
	if c, _, ok := strings.Cut(s.Header().Get("WWW-Authenticate"), ",scope="); ok {
		s.Header().Set("WWW-Authenticate", c)
	}
	s.ResponseWriter.WriteHeader(status)
}

// TestGuestRefused checks that the target of a redirect gets no more than an anonymous token, and
// that the error names it.
func TestGuestRefused(t *testing.T) {
	t.Parallel()
	for name, guard := range map[string]registrytest.Fault{
		"basic":     registrytest.Basic("alice", "se:cret"),
		"nothing":   registrytest.Answer(401, nil),
		"not HTTPS": registrytest.Answer(401, nil, "WWW-Authenticate", `Bearer realm="ftp://x/token"`),
		"endless": func(w http.ResponseWriter, r *http.Request) bool {
			realm := fmt.Sprintf(`Bearer realm="http://%s/token",service="%p"`, r.Host, r)
			return registrytest.Answer(401, nil, "WWW-Authenticate", realm)(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			front, back := registrytest.New(t), registrytest.New(t)
			back.Fault = registrytest.On("/token", registrytest.Answer(200, []byte(`{"token":"t"}`)))
			back.Guard, front.Guard = guard, registrytest.On("/v2/", registrytest.Redirect(307, "http://"+back.Host))
			r := newResolver(t, func(o *Options) { o.Credentials = always(alice) })
			_, err := pull(t.Context(), r, newStore(t), front.Host+"/x:1", nil)
			if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), back.Host) {
				t.Fatal(err)
			}
			if name != "not HTTPS" && !cause.Is(err, cause.Redirected) {
				t.Errorf("the cause is %v", cause.Of(err))
			}
			if n := len(back.Requests()); n > 2*12 { // of the index and of the manifest
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestRedirectedFile checks that a file server which refuses, for example because a signed URL has
// expired, is not reported as a registry to log in to.
func TestRedirectedFile(t *testing.T) {
	t.Parallel()
	front, files := registrytest.New(t), registrytest.New(t)
	image(front)
	files.Guard = registrytest.Answer(403, nil)
	front.Guard = registrytest.On("/blobs/", registrytest.Redirect(307, "http://"+files.Host))
	_, err := pull(t.Context(), newResolver(t, nil), newStore(t), front.Host+"/x:1", nil)
	if !errdefs.IsPermissionDenied(err) || !cause.Is(err, cause.RegistryFailed) {
		t.Errorf("%v: the cause is %v", err, cause.Of(err))
	}
}

// TestExpired checks that a token which expires during a download costs one new token, however the
// registry refuses the old one, and that the download resumes.
func TestExpired(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]registrytest.Fault{
		"with a challenge":      nil,
		"without one":           registrytest.Answer(401, []byte("expired")),
		"without a realm":       registrytest.Answer(401, nil, "WWW-Authenticate", `Bearer error="invalid_token"`),
		"403":                   registrytest.Answer(403, nil),
		"401 after a redirect":  registrytest.Answer(401, nil),
		"a gateway's challenge": registrytest.Answer(401, nil, "WWW-Authenticate", "Bearer"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, tokens := guarded(t)
			data := bigImage(reg)
			reg.Fault = registrytest.On(layerPath(data), func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") != "" {
					return false
				}
				defer tokens.Revoke()
				return !tokens.Guard(discard{}, r) && registrytest.Cut(data, 100_000)(w, r)
			})
			if refuse != nil {
				reg.Guard = func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("Authorization") == "" {
						return tokens.Guard(w, r)
					}
					return tokens.Guard(discard{}, r) && refuse(w, r)
				}
			}
			host := reg.Host
			if name == "401 after a redirect" {
				front := registrytest.New(t)
				front.Guard = registrytest.On("/v2/", registrytest.Redirect(307, "http://"+reg.Host))
				host = front.Host
			}
			store := newStore(t)
			if _, err := pull(t.Context(), newResolver(t, nil), store, host+"/x:1", nil); err != nil {
				t.Fatal(err)
			}
			holds(t, store, data)
			if n := len(tokens.Requests()); n != 2 {
				t.Errorf("%d tokens", n)
			}
			if n := reg.Count("bytes=100000-"); n != 2 { // refused once
				t.Errorf("%d resumes: %q", n, reg.Requests())
			}
		})
	}
}

// TestChallengeElsewhere checks gateways that drop the challenge of the registry behind them, or
// add one.
func TestChallengeElsewhere(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(h http.Header, root bool){
		"only at the root of the API": func(h http.Header, root bool) {
			if !root {
				h.Del("WWW-Authenticate")
			}
		},
		"beside one of its own": func(h http.Header, _ bool) {
			h["Www-Authenticate"] = append([]string{`Basic realm="gateway"`}, h["Www-Authenticate"]...)
		},
		"in one line with its own": func(h http.Header, _ bool) {
			h.Set("WWW-Authenticate", "Negotiate, "+h.Get("WWW-Authenticate")+`, Basic realm="gateway"`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, tokens := guarded(t)
			reg.Guard = func(w http.ResponseWriter, r *http.Request) bool {
				return tokens.Guard(edited{w, func(h http.Header) { edit(h, r.URL.Path == "/v2/") }}, r)
			}
			if _, err := pull(t.Context(), newResolver(t, nil), newStore(t), reg.Host+"/x:1", nil); err != nil {
				t.Fatal(err, reg.Requests())
			}
		})
	}
}

// edited changes the headers of an answer.
type edited struct {
	http.ResponseWriter
	edit func(http.Header)
}

func (e edited) WriteHeader(status int) {
	e.edit(e.Header())
	e.ResponseWriter.WriteHeader(status)
}
