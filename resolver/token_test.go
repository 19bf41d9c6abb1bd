package resolver

import (
	"context"
	"net/http"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestD18Tokens checks for how long a token is used.
func TestD18Tokens(t *testing.T) {
	for _, tc := range []struct {
		testName string
		expires  string
		revoke   bool // between two pulls
		fault    registrytest.Fault
		asked    int
		ok       bool
	}{
		{"kept", "300", false, nil, 1, true},
		{"kept without expiry", "", false, nil, 1, true},
		{"revoked", "300", true, nil, 2, true},
		{"huge expiry", "1e12", false, nil, 1, true},
		{"10 MB", "", false, registrytest.Answer(200, make([]byte, 10<<20)), 1, false},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg, tokens := guarded(t)
			tokens.ExpiresIn, tokens.Fault = tc.expires, tc.fault
			shared := NewTokenCache()
			for range 2 {
				r := newResolver(t, func(o *Options) { o.Tokens = shared })
				if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); (err == nil) != tc.ok {
					t.Fatal(err)
				}
				if !tc.ok {
					break
				}
				if tc.revoke {
					tokens.Revoke()
				}
			}
			if n := len(tokens.Requests()); n != tc.asked {
				t.Errorf("%d tokens were requested, want %d", n, tc.asked)
			}
		})
	}
	t.Run("never kept", func(t *testing.T) {
		reg, tokens := guarded(t)
		tokens.ExpiresIn = "0"
		if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); err != nil ||
			len(tokens.Requests()) != 4 {
			t.Fatal(err, len(tokens.Requests())) // one for each request: manifest, config, two layers
		}
	})
	t.Run("one refresh", func(t *testing.T) {
		reg, tokens := guarded(t)
		inner := reg.Guard
		reg.Guard = func(w http.ResponseWriter, r *http.Request) bool {
			tokens.Revoke()
			return inner(w, r)
		}
		if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); !errdefs.IsUnauthorized(err) {
			t.Fatal(err)
		}
		if len(tokens.Requests()) > 2 || len(reg.Requests()) > 3 {
			t.Errorf("%d tokens, %d requests", len(tokens.Requests()), len(reg.Requests()))
		}
	})
}

// TestD18Identities checks that a token is used only for the credential that obtained it.
func TestD18Identities(t *testing.T) {
	reg, tokens := guarded(t)
	tokens.Users = map[string]string{"alice": "se:cret"}
	shared := NewTokenCache()
	as := func(c auth.Credential) error {
		r := newResolver(t, func(o *Options) {
			o.Tokens, o.Credentials = shared, always(c)
			o.Realms = map[string][]string{reg.Host: {registrytest.MustURL(tokens.URL).Host}}
		})
		_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
		return err
	}
	if err := as(alice); err != nil {
		t.Fatal(err)
	}
	for _, c := range []auth.Credential{{}, {Username: "bob", Password: "se:cret"},
		{Username: "alice", Password: "se:cre"}} {
		if err := as(c); !errdefs.IsUnauthorized(err) {
			t.Errorf("%v was accepted: %v", c, err)
		}
	}
}

// TestDemandChanges checks that a registry may change which authentication it requires.
func TestDemandChanges(t *testing.T) {
	reg, old := guarded(t)
	now := registrytest.NewTokenServer(t)
	shared := NewTokenCache()
	try := func() error {
		r := newResolver(t, func(o *Options) { o.Tokens = shared })
		_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	reg.Guard = now.Guard
	old.Fault = registrytest.Answer(503, nil)
	if err := try(); err != nil {
		t.Fatal(err)
	}
	reg.Guard = nil
	if err := try(); err != nil {
		t.Fatal(err)
	}
}

// TestCredentialsAreAskedLate checks that a public image asks for no credentials, and a private one
// once.
func TestCredentialsAreAskedLate(t *testing.T) {
	public := registrytest.New(t)
	image(public)
	private := registrytest.New(t)
	image(private)
	private.Guard = registrytest.Basic("alice", "se:cret")
	var asked []string
	r := newResolver(t, func(o *Options) {
		o.Credentials = func(_ context.Context, host string) (auth.Credential, error) {
			asked = append(asked, host)
			return alice, nil
		}
	})
	for _, reg := range []*registrytest.Registry{public, private} {
		if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 1 || asked[0] != private.Host {
		t.Errorf("asked for %q", asked)
	}
}
