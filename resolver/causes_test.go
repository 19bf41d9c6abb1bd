package resolver

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestCauses: what goes wrong at a registry, or on the way to it, has its own cause.
func TestCauses(t *testing.T) {
	t.Parallel()
	plain := registrytest.New(t)
	tls := registrytest.NewTLS(t, nil)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()
	status := func(code int) string {
		r := registrytest.New(t)
		r.Fault = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
		return r.Host
	}
	cut := registrytest.New(t)
	cut.Fault = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
	silent := registrytest.New(t)
	silent.Fault = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	for name, tc := range map[string]struct {
		host, scheme string
		want         cause.Kind
		code         int
	}{
		"no such tag":              {plain.Host, "http", cause.Tag, 3},
		"401":                      {status(401), "http", cause.Unauthorized, 4},
		"403":                      {status(403), "http", cause.Forbidden, 4},
		"429":                      {status(429), "http", cause.RateLimited, 5},
		"500":                      {status(500), "http", cause.RegistryFailed, 5},
		"an answer of no registry": {status(418), "http", cause.RegistryFailed, 5},
		"nobody listens":           {nobody, "http", cause.Refused, 5},
		"a cut connection":         {cut.Host, "http", cause.Broken, 5},
		"no answer":                {silent.Host, "http", cause.Timeout, 5},
		"a name that is not found": {"registry.invalid", "https", cause.DNS, 5},
		"an unknown authority":     {tls.Host, "https", cause.Certificate, 5},
		"HTTP to a port for TLS":   {tls.Host, "http", cause.HTTPToTLS, 5},
		"TLS to a port for HTTP":   {plain.Host, "https", cause.TLSToHTTP, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			toml := "server = \"" + tc.scheme + "://" + tc.host + "\"\n"
			r, err := New(&Options{
				HostsDir: certsDir(t, tc.host, map[string][]byte{"hosts.toml": []byte(toml)}), Attempts: 1, Backoff: time.Millisecond,
				StallTimeout: 500 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			ref, err := ParseReference(tc.host + "/x:none")
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Resolve(ctx, ref)
			why := cause.Of(err)
			if code, _ := why.Exit(); why.Kind != tc.want || code != tc.code {
				t.Errorf("%q, exit %d: %v", why.Kind, code, err)
			}
			if tc.want == cause.Unauthorized && !strings.Contains(why.Hint(), "docker login "+tc.host) {
				t.Errorf("hint: %s", why.Hint())
			}
		})
	}
}
