package resolver

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestD02CredentialsStayHome checks that a realm of another site gets no credentials, and that the
// error states this.
func TestD02CredentialsStayHome(t *testing.T) {
	reg, tokens := guarded(t)
	tokens.Users = map[string]string{"alice": "se:cret"}
	for _, c := range []auth.Credential{alice, {IdentityToken: "refresh me"}} {
		r := newResolver(t, func(o *Options) { o.Credentials = always(c) })
		_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
		if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "of another site") {
			t.Fatal(err)
		}
	}
	for _, r := range tokens.Requests() {
		if r.Authorization != "" || r.Form.Get("refresh_token") != "" {
			t.Errorf("credentials left: %+v", r)
		}
	}
}

// TestD02TokenRedirects checks that an anonymous request for a token follows redirects, and that
// credentials do not.
func TestD02TokenRedirects(t *testing.T) {
	for _, status := range []int{302, 307} {
		for _, cred := range []auth.Credential{{}, alice, {IdentityToken: "refresh me"}} {
			reg, tokens := guarded(t)
			gateway := registrytest.NewTokenServer(t)
			gateway.Fault = registrytest.Redirect(status, strings.TrimSuffix(tokens.URL, "/token"))
			tokens.Realm = gateway.URL
			tokens.Refresh = map[string]bool{"refresh me": true}
			r := newResolver(t, func(o *Options) {
				o.Credentials = always(cred)
				o.Realms = map[string][]string{reg.Host: {registrytest.MustURL(gateway.URL).Host}}
			})
			_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
			if (err == nil) != (cred == auth.Credential{}) || err != nil && len(tokens.Requests()) != 0 {
				t.Errorf("%d, %v: %v, %+v", status, cred, err, tokens.Requests())
			}
		}
	}
}

// TestD02Answers checks challenges and token servers that are wrong or hostile.
func TestD02Answers(t *testing.T) {
	for _, tc := range []struct {
		testName string
		fault    func(*registrytest.TokenServer)
		header   string
		ok       bool
	}{
		{"redirect to a file", func(s *registrytest.TokenServer) { s.Fault = registrytest.Redirect(302, "file://") },
			"",
			false},
		{"redirect to metadata", func(s *registrytest.TokenServer) {
			s.Fault = registrytest.Redirect(302, "http://169.254.169.254")
		}, "", false},
		{"redirect within", func(s *registrytest.TokenServer) {
			s.Fault = registrytest.Times(1, registrytest.Redirect(307, strings.TrimSuffix(s.URL, "/token")))
		}, "", true},
		{"redirect loop", func(s *registrytest.TokenServer) {
			s.Fault = registrytest.Redirect(307, strings.TrimSuffix(s.URL, "/token"))
		}, "", false},
		{"no realm", nil, `Bearer service="s"`, false},
		{"realm twice", nil, `Bearer realm="REALM",realm="http://evil.test"`, false},
		{"realm without quotes", nil, `Bearer realm=REALM,service=s`, true},
		{"second of several", nil, `Negotiate, Basic realm="x", Bearer realm="REALM"`, true},
		{"file", nil, `Bearer realm="file:///etc/passwd"`, false},
		{"metadata", nil, `Bearer realm="http://169.254.169.254/latest"`, false},
		{"unknown scheme", nil, `Digest realm="x"`, false},
		{"none", nil, ``, false},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg, tokens := guarded(t)
			if tc.fault != nil {
				tc.fault(tokens)
			}
			if tc.fault == nil {
				guard := reg.Guard
				reg.Guard = func(w http.ResponseWriter, r *http.Request) bool {
					if !guard(httptest.NewRecorder(), r) {
						return false
					}
					return registrytest.Answer(401, nil, "WWW-Authenticate",
						strings.ReplaceAll(tc.header, "REALM", tokens.URL))(w, r)
				}
			}
			_, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
			if (err == nil) != tc.ok {
				t.Fatal(err)
			}
		})
	}
}
