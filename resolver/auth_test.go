package resolver

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// newResolver makes a resolver whose failing requests end soon, with options of the test.
func newResolver(tb testing.TB, edit func(*Options)) *Resolver {
	tb.Helper()
	opts := Options{Backoff: time.Millisecond, StallTimeout: 2 * time.Second, Attempts: 3}
	if edit != nil {
		edit(&opts)
	}
	r, err := New(&opts)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// always returns a source with the same credential for every host.
func always(c auth.Credential) auth.Source {
	return func(context.Context, string) (auth.Credential, error) { return c, nil }
}

func guarded(tb testing.TB) (*registrytest.Registry, *registrytest.TokenServer) {
	tb.Helper()
	reg, tokens := registrytest.New(tb), registrytest.NewTokenServer(tb)
	image(reg)
	reg.Guard = tokens.Guard
	return reg, tokens
}

var alice = auth.Credential{Username: "alice", Password: "se:cret"}

func TestBasic(t *testing.T) {
	for _, tc := range []struct {
		testName string
		cred     auth.Credential
		class    error
	}{
		{"right", alice, nil},
		{"wrong", auth.Credential{Username: "alice", Password: "guess"}, errdefs.ErrUnauthenticated},
		{"nobody", auth.Credential{}, errdefs.ErrUnauthenticated},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.New(t)
			image(reg)
			reg.Guard = registrytest.Basic("alice", "se:cret")
			_, err := pull(t.Context(), newResolver(t, func(o *Options) { o.Credentials = always(tc.cred) }),
				newStore(t), reg.Host+"/x:1", nil)
			if !isClass(err, tc.class) {
				t.Fatal(err)
			}
			if n := len(reg.Requests()); tc.class != nil && n > 2 {
				t.Errorf("%d requests with a password that is wrong", n)
			}
		})
	}
}

func isClass(err, class error) bool {
	if class == nil {
		return err == nil
	}
	return errors.Is(err, class)
}

// TestTokenFlows has a row for each kind of credential.
func TestTokenFlows(t *testing.T) {
	for _, tc := range []struct {
		testName string
		cred     auth.Credential
		method   string
		class    error
	}{
		{"anonymous", auth.Credential{}, "GET", errdefs.ErrUnauthenticated},
		{"password", alice, "GET", nil},
		{"wrong password", auth.Credential{Username: "alice", Password: "guess"}, "GET", errdefs.ErrUnauthenticated},
		{"identity token", auth.Credential{Username: "ignored", IdentityToken: "refresh me"}, "POST", nil},
		{"wrong identity token", auth.Credential{IdentityToken: "no"}, "POST", errdefs.ErrUnauthenticated},
		{"wrong registry token", auth.Credential{RegistryToken: "no"}, "", errdefs.ErrUnauthenticated},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg, tokens := guarded(t)
			tokens.Users = map[string]string{"alice": "se:cret"}
			tokens.Refresh = map[string]bool{"refresh me": true}
			r := newResolver(t, func(o *Options) {
				o.Credentials = always(tc.cred)
				o.Realms = map[string][]string{
					reg.Host: {strings.TrimPrefix(strings.TrimSuffix(tokens.URL, "/token"), "http://")}}
			})
			_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
			if !isClass(err, tc.class) {
				t.Fatal(err)
			}
			requests := tokens.Requests()
			if tc.method == "" {
				if len(requests) != 0 {
					t.Errorf("a token server was asked: %v", requests)
				}
				return
			}
			if len(requests) != 1 || requests[0].Method != tc.method ||
				requests[0].Form.Get("service") != "registry, the" ||
				requests[0].Form.Get("scope") != "repository:x:pull" {
				t.Errorf("requests %+v", requests)
			}
			if requests[0].Method == "POST" && requests[0].Authorization != "" {
				t.Error("a refresh token needs no basic authentication")
			}
		})
	}
}

func TestRegistryToken(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	reg.Guard = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer mine" {
			return false
		}
		return registrytest.Answer(401, nil, "WWW-Authenticate", "Bearer realm=\"nowhere\"")(w, r)
	}
	r := newResolver(t, func(o *Options) { o.Credentials = always(auth.Credential{RegistryToken: "mine"}) })
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
}
