package resolver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// client is quick, with options of the test's own.
func client(tb testing.TB, edit func(*Options)) *Resolver {
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

// always is the same credential for every host.
func always(c Credential) Credentials {
	return func(context.Context, string) (Credential, error) { return c, nil }
}

func guarded(tb testing.TB) (*registrytest.Registry, *registrytest.TokenServer) {
	tb.Helper()
	reg, tokens := registrytest.New(tb), registrytest.NewTokenServer(tb)
	image(reg)
	reg.Guard = tokens.Guard
	return reg, tokens
}

var alice = Credential{Username: "alice", Password: "se:cret"}

func TestBasic(t *testing.T) {
	for _, tc := range []struct {
		testName string
		cred     Credential
		class    error
	}{
		{"right", alice, nil},
		{"wrong", Credential{Username: "alice", Password: "guess"}, errdefs.ErrUnauthenticated},
		{"nobody", Credential{}, errdefs.ErrUnauthenticated},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.New(t)
			image(reg)
			reg.Guard = registrytest.Basic("alice", "se:cret")
			_, err := pull(t.Context(), client(t, func(o *Options) { o.Credentials = always(tc.cred) }), newStore(t), reg.Host+"/x:1", nil)
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
		cred     Credential
		method   string
		class    error
	}{
		{"anonymous", Credential{}, "GET", errdefs.ErrUnauthenticated},
		{"password", alice, "GET", nil},
		{"wrong password", Credential{Username: "alice", Password: "guess"}, "GET", errdefs.ErrUnauthenticated},
		{"identity token", Credential{Username: "ignored", IdentityToken: "refresh me"}, "POST", nil},
		{"wrong identity token", Credential{IdentityToken: "no"}, "POST", errdefs.ErrUnauthenticated},
		{"wrong registry token", Credential{RegistryToken: "no"}, "", errdefs.ErrUnauthenticated},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg, tokens := guarded(t)
			tokens.Users = map[string]string{"alice": "se:cret"}
			tokens.Refresh = map[string]bool{"refresh me": true}
			r := client(t, func(o *Options) {
				o.Credentials = always(tc.cred)
				o.Realms = map[string][]string{reg.Host: {strings.TrimPrefix(strings.TrimSuffix(tokens.URL, "/token"), "http://")}}
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
			if len(requests) != 1 || requests[0].Method != tc.method || requests[0].Form.Get("service") != "registry, the" ||
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
	r := client(t, func(o *Options) { o.Credentials = always(Credential{RegistryToken: "mine"}) })
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
}

// TestD02Realms: where a token server may be, and where it gets credentials.
func TestD02Realms(t *testing.T) {
	for _, tc := range []struct {
		home, realm string
		ok, trusted bool
	}{
		{"https://r.example.com", "https://r.example.com/token", true, true},
		{"https://r.example.com:5000", "https://r.example.com:5000/token?x=y", true, true},
		{"https://r.example.com", "https://R.Example.COM:443/token", true, true},
		{"https://r.example.com", "https://auth.example.com/token", true, true}, // GitLab of one's own
		{"https://r.example.com", "https://example.com:8443/token", true, true},
		{"https://registry-1.docker.io", "https://auth.docker.io/token", true, true},
		{"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true, true},
		{"https://r.example.com", "https://auth.example.net/token", true, false},
		{"https://r.example.com", "https://r.example.com.evil.net/token", true, false},
		{"https://r.example.com", "https://evilexample.com/token", true, false},
		{"https://one.github.io", "https://two.github.io/token", true, false},
		{"https://one.co.uk", "https://two.co.uk/token", true, false},
		{"https://registry", "https://auth/token", true, false},
		{"https://10.0.0.1", "https://10.0.0.1:8443/token", true, false},
		{"https://10.0.0.1", "https://10.0.0.2/token", true, false},
		{"https://r.example.com", "https://10.0.0.2/token", true, false},
		{"http://r.example.com", "http://r.example.com/token", true, true},
		{"http://r.example.com:80", "https://r.example.com/token", true, true},
		{"https://r.example.com", "http://r.example.com/token", false, false},
		{"https://r.example.com", "https://169.254.169.254/", false, false},
		{"https://r.example.com", "https://[fe80::1]/", false, false},
		{"https://r.example.com", "https://[fd00:ec2::254]/", false, false},
		{"https://r.example.com", "https://[::]/", false, false},
		{"https://r.example.com", "https://[::ffff:169.254.169.254]/", false, false},
		{"https://r.example.com", "https://[64:ff9b::a9fe:a9fe]/", false, false},
		{"https://r.example.com", "https://0.0.0.0/", false, false},
		{"http://169.254.1.1", "http://169.254.1.1/token", true, true},
		{"http://169.254.1.1", "http://169.254.1.2/token", false, false},
		{"https://r.example.com", "file:///etc/passwd", false, false},
		{"https://r.example.com", "unix:///run/x", false, false},
		{"https://r.example.com", "https:opaque", false, false},
		{"https://r.example.com", "https://", false, false},
		{"https://r.example.com", "/token", false, false},
		{"https://r.example.com", "https://u:p@r.example.com/token", false, false},
		{"https://r.example.com", "https://r.example.com/\x7f", false, false},
		{"https://r.example.com", "", false, false},
	} {
		t.Run(tc.home+" "+tc.realm, func(t *testing.T) {
			home, err := url.Parse(tc.home)
			if err != nil {
				t.Fatal(err)
			}
			u, err := realmURL(home, tc.realm)
			if (err == nil) != tc.ok {
				t.Fatal(u, err)
			}
			if err == nil && trusted(home, u, nil) != tc.trusted {
				t.Errorf("trusted: %v", !tc.trusted)
			}
			if err == nil && !trusted(home, u, []string{u.Host}) {
				t.Error("a configured realm is not trusted")
			}
		})
	}
}

// TestD02Addresses: what a name may turn out to be when it is dialled.
func TestD02Addresses(t *testing.T) {
	for _, tc := range []struct {
		addr                string
		far, whenRegistryIs bool // allowed to a registry elsewhere, to one on this machine
	}{
		{"93.184.216.34", true, true},
		{"10.1.2.3", true, true},
		{"127.0.0.1", false, true},
		{"::1", false, true},
		{"::ffff:127.0.0.1", false, true},
		{"169.254.169.254", false, false},
		{"fe80::1%eth0", false, false},
		{"0.0.0.0", false, false},
		{"::", false, false},
		{"224.0.0.1", false, false},
		{"100.100.100.200", false, false},
		{"64:ff9b::a9fe:a9fe", false, false},
	} {
		a := netip.MustParseAddr(tc.addr)
		if err := checkAddress(a, false); (err == nil) != tc.far {
			t.Errorf("%s: %v", a, err)
		}
		if err := checkAddress(a, true); (err == nil) != tc.whenRegistryIs {
			t.Errorf("%s, local registry: %v", a, err)
		}
	}
}

// TestD02CredentialsStayHome: a realm of another site is asked without credentials, and the error says so.
func TestD02CredentialsStayHome(t *testing.T) {
	reg, tokens := guarded(t)
	tokens.Users = map[string]string{"alice": "se:cret"}
	for _, c := range []Credential{alice, {IdentityToken: "refresh me"}} {
		r := client(t, func(o *Options) { o.Credentials = always(c) })
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

// TestD02Answers: challenges and token servers that lead astray.
func TestD02Answers(t *testing.T) {
	var leaked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { leaked.Add(1) }))
	defer other.Close()
	for _, tc := range []struct {
		testName string
		fault    func(*registrytest.TokenServer)
		header   string
		ok       bool
	}{
		{"redirect to another origin", func(s *registrytest.TokenServer) { s.Fault = registrytest.Redirect(302, other.URL) }, "", false},
		{"redirect 307 to another origin", func(s *registrytest.TokenServer) { s.Fault = registrytest.Redirect(307, other.URL) }, "", false},
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
					return registrytest.Answer(401, nil, "WWW-Authenticate", strings.ReplaceAll(tc.header, "REALM", tokens.URL))(w, r)
				}
			}
			_, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
			if (err == nil) != tc.ok || leaked.Load() != 0 {
				t.Fatal(err, leaked.Load())
			}
		})
	}
}

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
				r := client(t, func(o *Options) { o.Tokens = shared })
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
		if len(tokens.Requests()) > 2 || len(reg.Requests()) > maxTries {
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
		r := client(t, func(o *Options) {
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
		r := client(t, func(o *Options) { o.Tokens = shared })
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
	r := client(t, func(o *Options) {
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

func TestParseChallenges(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"`, `bearer{realm=https://a/t scope=repository:x:pull,push service=s}`},
		{`bearer  Realm = "a" , service=b`, `bearer{realm=a service=b}`},
		{`Basic realm="a \"quoted\" \\ one"`, `basic{realm=a "quoted" \ one}`},
		{`Basic realm="x", Bearer realm="y",service="z"`, `basic{realm=x} bearer{realm=y service=z}`},
		{`Negotiate, Basic realm=x`, `negotiate{} basic{realm=x}`},
		{`Negotiate YII=, Basic realm=x`, `negotiate{} basic{realm=x}`},
		{`Negotiate YII=`, `negotiate{}`},
		{`Basic`, `basic{}`},
		{`,, Basic realm=x,,`, `basic{realm=x}`},
		{`Bearer realm="a",realm="b"`, ``},
		{`Bearer realm="a`, ``},
		{`Bearer realm="a" x`, ``},
		{"Bearer realm=\"a\r\nX: y\"", ``},
		{`Basic realm="x", Bearer realm="a`, `basic{realm=x}`},
		{``, ``},
		{`"`, ``},
	} {
		if got := show(challenges(http.Header{"Www-Authenticate": {tc.in}})); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.in, got, tc.want)
		}
	}
	many := http.Header{"Www-Authenticate": {strings.Repeat("Basic realm=x,", 1000), `Bearer realm="` + strings.Repeat("a", maxChallenge) + `"`}}
	if n := len(challenges(many)); n > maxChallenges {
		t.Errorf("%d challenges", n)
	}
}

func show(all []challenge) string {
	var out []string
	for _, c := range all {
		var params []string
		for _, name := range slices.Sorted(maps.Keys(c.params)) {
			params = append(params, name+"="+c.params[name])
		}
		out = append(out, c.scheme+"{"+strings.Join(params, " ")+"}")
	}
	return strings.Join(out, " ")
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="s"`, `Negotiate YII=, Basic realm=x`, `Bearer realm="\"`, `=`, `a =b, c`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range challenges(http.Header{"Www-Authenticate": {s}}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Fatalf("scheme %q", c.scheme)
			}
			for name, value := range c.params {
				if name == "" || strings.ContainsFunc(name+value, isControl) {
					t.Fatalf("%q=%q", name, value)
				}
			}
			if u, err := realmURL(mustURL("https://r.example.com"), c.params["realm"]); err == nil && u.Scheme != "https" {
				t.Fatal(u)
			}
		}
	})
}
