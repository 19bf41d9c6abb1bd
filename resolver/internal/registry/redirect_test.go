package registry

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// trip is a transport that answers by itself.
type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(r *http.Request, status int, location string) *http.Response {
	h := http.Header{}
	if location != "" {
		h.Set("Location", location)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader("body")), Request: r}
}

var secrets = []string{"Authorization", "Cookie", "X-Registry-Key", "Proxy-Authorization"}

// TestD01Redirects checks that secrets are sent only to the registry. Every row is a chain of
// redirects; only the requests before the first one to another origin may have secrets and the
// client certificate. The rows D03 have absolute and relative Locations.
func TestD01Redirects(t *testing.T) {
	const a = "https://r.example.com"
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, tc := range []struct {
			testName string
			chain    []string // Location of each answer
			home     int      // number of requests to the registry
			ok       bool
		}{
			{"same origin", []string{a + "/other"}, 2, true},
			{"D03 relative", []string{"/other"}, 2, true},
			{"same origin, port spelled out", []string{"https://R.example.com:443/other"}, 2, true},
			{"other host", []string{"https://cdn.example.net/x"}, 1, true},
			{"D03 without scheme", []string{"//cdn.example.net/x"}, 1, true},
			{"sub-domain", []string{"https://cdn.r.example.com/x"}, 1, true},
			{"parent domain", []string{"https://example.com/x"}, 1, true},
			{"same host other port", []string{a + ":8443/x"}, 1, true},
			{"A to B to A", []string{"https://b.example.net/x", a + "/x"}, 1, true},
			{"A to A to B to A to A", []string{a + "/1", "https://b.example.net/x", a + "/2", "/3"}, 2, true},
			{"user in the address", []string{"https://user:pass@b.example.net/x"}, 1, true},
			{"user in the address at home", []string{"https://user:pass@r.example.com/x"}, 2, true},
			{"https to http", []string{"http://r.example.com/x"}, 1, false},
			{"https to http elsewhere", []string{"https://b.example.net/", "http://b.example.net/x"}, 1, false},
			{"D21 nowhere", []string{""}, 1, false},
			{"D21 file", []string{"file:///etc/passwd"}, 1, false},
			{"D21 unix", []string{"unix:///run/x"}, 1, false},
			{"D21 not a URL", []string{"https://%zz/"}, 1, false},
			{"D21 loop", []string{"/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9", "/10", "/11", "/12"}, 11,
				false},
			{"D21 ten hops", []string{"/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9", "/10"}, 11, true},
		} {
			t.Run(fmt.Sprint(status, " ", tc.testName), func(t *testing.T) {
				var n, home int
				via := func(isHome bool) trip {
					return func(r *http.Request) (*http.Response, error) {
						if isHome {
							home++
						}
						for _, key := range secrets {
							if (r.Header.Get(key) != "") != isHome {
								t.Errorf("%s: %s is %q", r.URL, key, r.Header.Get(key))
							}
						}
						if r.URL.User != nil || r.Header.Get("Referer") != "" || r.Header.Get("Range") != "bytes=5-" ||
							r.Method != "GET" {
							t.Errorf("%s %s: %v", r.Method, r.URL, r.Header)
						}
						if n++; n <= len(tc.chain) {
							return respond(r, status, tc.chain[n-1]), nil
						}
						return respond(r, 200, ""), nil
					}
				}
				c := newTestClient(t, nil)
				host := &Endpoint{RegistryHost: docker.RegistryHost{Scheme: "https", Host: "r.example.com"},
					direct: newTransportSet(via(true), nil), others: newTransportSet(via(false), nil)}
				p := &Repository{client: c, Registry: "r.example.com", Path: "x", Hosts: []*Endpoint{host}}
				own := http.Header{}
				for _, key := range secrets {
					own.Set(key, "hush")
				}
				resp, atHome, err := p.send(t.Context(), host, registrytest.MustURL(a+"/v2/x/blobs/y"),
					request{common: http.Header{"Range": {"bytes=5-"}}, hostOnly: own})
				if (err == nil) != tc.ok || home != tc.home {
					t.Fatal(resp, err, home)
				}
				if err != nil &&
					(retry.IsTemporary(err) || !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "/x")) {
					t.Error(err)
				}
				if err == nil && atHome != (n == tc.home) {
					t.Errorf("at home: %v", atHome)
				}
			})
		}
	}
}

// TestD04Addresses checks that a registry on another machine cannot lead to this one.
func TestD04Addresses(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer other.Close()
	var local atomic.Bool
	away := checkedTransport(&http.Transport{}, registrytest.MustURL("https://93.184.216.34"), &local)
	for _, u := range []string{other.URL, "http://169.254.169.254/latest", "http://0.0.0.0:1/", "http://[::1]:1/"} {
		req, _ := http.NewRequest("GET", u, nil)
		if _, err := away.RoundTrip(req); err == nil || retry.IsTemporary(httperror.Network("x", err)) ||
			!strings.Contains(err.Error(), "must not lead to it") {
			t.Errorf("%s: %v", u, err)
		}
	}
	local.Store(true) // the registry is on this machine
	req, _ := http.NewRequest("GET", other.URL, nil)
	if _, err := away.RoundTrip(req); err != nil {
		t.Error(err)
	}
	// The environment chooses the proxy, not the registry.
	local.Store(false)
	away = checkedTransport(&http.Transport{Proxy: http.ProxyURL(registrytest.MustURL(other.URL))},
		registrytest.MustURL("https://93.184.216.34"), &local)
	req, _ = http.NewRequest("GET", "http://93.184.216.35/", nil)
	if _, err := away.RoundTrip(req); err != nil {
		t.Error(err)
	}
}
