package resolver

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestD18Tokens: what is wrong with a token, and for how long a good one is used.
func TestD18Tokens(t *testing.T) {
	big := strings.Repeat("a", maxToken+1)
	for _, tc := range []struct {
		in   string
		life time.Duration
		ok   bool
	}{
		{`{"token":"t"}`, time.Minute, true},
		{`{"access_token":"t"}`, time.Minute, true},
		{`{"token":"t","expires_in":300}`, 5 * time.Minute, true},
		{`{"token":"t","expires_in":0}`, 0, true},
		{`{"token":"t","expires_in":-1}`, 0, true},
		{`{"token":"t","expires_in":1e12}`, maxExpiry, true},
		{`{"token":"t","expires_in":1e400}`, 0, false},
		{`{"token":"t\r\nX: y"}`, 0, false},
		{`{"token":"a b"}`, 0, false},
		{`{"token":"ä"}`, 0, false},
		{`{"token":""}`, 0, false},
		{`{}`, 0, false},
		{`[]`, 0, false},
		{`<html>`, 0, false},
		{`{"token":"` + big + `"}`, 0, false},
	} {
		token, life, err := readToken([]byte(tc.in))
		if (err == nil) != tc.ok || life != tc.life || strings.Contains(fmt.Sprint(err), "aaa") {
			t.Errorf("%.60s: %.10q, %v, %v", tc.in, token, life, err)
		}
	}
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
				t.Errorf("%d tokens were asked for, not %d", n, tc.asked)
			}
		})
	}
	t.Run("never kept", func(t *testing.T) {
		reg, tokens := guarded(t)
		tokens.ExpiresIn = "0"
		if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); err != nil || len(tokens.Requests()) != 4 {
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

// TestD18Identities: a token belongs to whom it was given to.
func TestD18Identities(t *testing.T) {
	reg, tokens := guarded(t)
	tokens.Users = map[string]string{"alice": "se:cret"}
	shared := NewTokenCache()
	as := func(c Credential) error {
		r := newResolver(t, func(o *Options) {
			o.Tokens, o.Credentials = shared, always(c)
			o.Realms = map[string][]string{reg.Host: {mustURL(tokens.URL).Host}}
		})
		_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
		return err
	}
	if err := as(alice); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Credential{{}, {Username: "bob", Password: "se:cret"}, {Username: "alice", Password: "se:cre"}} {
		if err := as(c); !errdefs.IsUnauthorized(err) {
			t.Errorf("%v got in: %v", c, err)
		}
	}
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// TestDemandChanges: what is remembered of a registry does not bind it.
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

// TestTokenOnce: all who need a token at once ask once.
func TestTokenOnce(t *testing.T) {
	c := NewTokenCache()
	var asked atomic.Int32
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			token, _, err := c.token(t.Context(), tokenKey{scope: "s"}, func() (string, time.Duration, error) {
				time.Sleep(time.Millisecond)
				return fmt.Sprint(asked.Add(1)), time.Minute, nil
			})
			if token != "1" || err != nil {
				t.Error(token, err)
			}
		})
	}
	group.Wait()
	for i := range 2 * maxEntries {
		if _, _, err := c.token(t.Context(), tokenKey{scope: fmt.Sprint(i)}, func() (string, time.Duration, error) { return "t", 0, nil }); err != nil {
			t.Fatal(err)
		}
		c.setDemand(place{repository: fmt.Sprint(i)}, demand{})
	}
	if len(c.tokens) > maxEntries || len(c.demands) > maxEntries {
		t.Errorf("%d tokens, %d demands", len(c.tokens), len(c.demands))
	}
}

// TestSkew: a token is given up a little before its end.
func TestSkew(t *testing.T) {
	c := NewTokenCache()
	asked := 0
	get := func(life time.Duration) {
		_, _, err := c.token(t.Context(), tokenKey{}, func() (string, time.Duration, error) { asked++; return "t", life, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	get(time.Minute)
	if left := time.Until(c.tokens[tokenKey{}].until); left > 51*time.Second || left < 45*time.Second {
		t.Error(left)
	}
	get(time.Minute)
	c.tokens[tokenKey{}].until = time.Now().Add(-time.Second)
	get(2 * time.Second)
	if left := time.Until(c.tokens[tokenKey{}].until); left > 1500*time.Millisecond || asked != 2 {
		t.Error(left, asked)
	}
}

// TestCredentialsAreAskedLate: public images ask nobody, and a private one asks once.
func TestCredentialsAreAskedLate(t *testing.T) {
	public := registrytest.New(t)
	image(public)
	private := registrytest.New(t)
	image(private)
	private.Guard = registrytest.Basic("alice", "se:cret")
	var asked []string
	r := newResolver(t, func(o *Options) {
		o.Credentials = func(_ context.Context, host string) (Credential, error) {
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
