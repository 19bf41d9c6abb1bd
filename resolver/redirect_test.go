package resolver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// TestD01Redirects: what a registry is told stays there. Every row is a chain of addresses; only those before the first of another origin may see
// secrets and the client certificate. Location absolute and relative is row D03.
func TestD01Redirects(t *testing.T) {
	const a = "https://r.example.com"
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, tc := range []struct {
			testName string
			chain    []string // Location of each answer
			home     int      // how many requests are at home
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
			{"D21 loop", []string{"/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9", "/10", "/11", "/12"}, 11, false},
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
						if r.URL.User != nil || r.Header.Get("Referer") != "" || r.Header.Get("Range") != "bytes=5-" || r.Method != "GET" {
							t.Errorf("%s %s: %v", r.Method, r.URL, r.Header)
						}
						if n++; n <= len(tc.chain) {
							return respond(r, status, tc.chain[n-1]), nil
						}
						return respond(r, 200, ""), nil
					}
				}
				r := quick(t)
				host := &endpoint{RegistryHost: docker.RegistryHost{Scheme: "https", Host: "r.example.com"}, home: newLanes(via(true), nil), foreign: newLanes(via(false), nil)}
				p := &repository{client: r.client, registry: "r.example.com", path: "x", hosts: []*endpoint{host}}
				own := http.Header{}
				for _, key := range secrets {
					own.Set(key, "hush")
				}
				resp, atHome, err := p.send(t.Context(), host, mustURL(a+"/v2/x/blobs/y"),
					request{common: http.Header{"Range": {"bytes=5-"}}, own: own})
				if (err == nil) != tc.ok || home != tc.home {
					t.Fatal(resp, err, home)
				}
				if err != nil && (temporary(err) || !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "/x")) {
					t.Error(err)
				}
				if err == nil && atHome != (n == tc.home) {
					t.Errorf("at home: %v", atHome)
				}
			})
		}
	}
}

// TestD01ForeignChallenge: another registry that a redirect leads to gets no credentials and no token that was given
// for them, whatever it asks for. It may give out anonymous tokens of its own.
func TestD01ForeignChallenge(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	var leaked atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(r.Header.Get("Authorization") + r.URL.Path)
		}
		registrytest.Answer(401, nil, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, r.Host), "WWW-Authenticate", "Basic realm=x")(w, r)
	}))
	defer other.Close()
	reg.Guard = registrytest.First(registrytest.Basic("alice", "se:cret"),
		registrytest.On("/blobs/", registrytest.Redirect(307, other.URL)))
	r := newResolver(t, func(o *Options) { o.Credentials = always(alice) })
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); !errdefs.IsUnauthorized(err) || leaked.Load() != nil {
		t.Fatal(err, leaked.Load())
	}
}

// keyPair is a certificate for clients, in PEM.
func keyPair(tb testing.TB) (cert, key []byte) {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		tb.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})
}

// certsDir is a certs.d for one registry.
func certsDir(tb testing.TB, host string, files map[string][]byte) string {
	tb.Helper()
	root := tb.TempDir()
	dir := filepath.Join(root, strings.ReplaceAll(host, ":", "_")+"_")
	if err := os.Mkdir(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return root
}

// TestD01ClientCertificate: it is shown to the registry, and to nobody a redirect or a challenge leads to. The same by HTTP/2.
func TestD01ClientCertificate(t *testing.T) {
	asks := func(want tls.ClientAuthType) func(*httptest.Server) {
		return func(s *httptest.Server) { s.TLS = &tls.Config{ClientAuth: want} }
	}
	reg, other := registrytest.NewTLS(t, asks(tls.RequireAnyClientCert)), registrytest.NewTLS(t, asks(tls.RequestClientCert))
	_, data := image(reg)
	for _, d := range data {
		other.Blob("", d)
	}
	var shown, blobs atomic.Int32
	other.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		shown.Add(int32(len(r.TLS.PeerCertificates)))
		blobs.Add(1)
		if r.URL.Path == "/token" {
			return registrytest.Answer(200, []byte(`{"token":"t"}`))(w, r)
		}
		return false
	}
	var http2 atomic.Int32
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.ProtoMajor == 2 {
			http2.Add(1)
		}
		if r.Header.Get("Authorization") != "Bearer t" {
			return registrytest.Answer(401, nil, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token"`, other.Host))(w, r)
		}
		for _, d := range data {
			if strings.HasSuffix(r.URL.Path, digest.FromBytes(d).String()) {
				return registrytest.Redirect(307, "https://"+other.Host)(w, r)
			}
		}
		return false
	}
	cert, key := keyPair(t)
	dir := certsDir(t, reg.Host, map[string][]byte{"ca.crt": reg.CA, "client.cert": cert, "client.key": key, "hosts.toml": fmt.Appendf(nil,
		"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\nclient = [[\"client.cert\", \"client.key\"]]\n", reg.Host)})
	r := newResolver(t, func(o *Options) { o.HostsDir = dir })
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	if shown.Load() != 0 || blobs.Load() != 3 || http2.Load() == 0 {
		t.Errorf("%d certificates shown, %d requests, %d by HTTP/2", shown.Load(), blobs.Load(), http2.Load())
	}
}

// TestD04URLs: a descriptor's urls are not followed, and a registry on another machine can't lead to this one.
func TestD04URLs(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	reg := registrytest.New(t)
	l := registrytest.New(t).Blob("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", []byte("layer")) // the other registry has it
	l.URLs = []string{other.URL + "/layer"}
	reg.Image("1", amd64, []ocispec.Descriptor{l}, []digest.Digest{l.Digest})
	if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); !errdefs.IsNotFound(err) || asked.Load() != 0 {
		t.Fatal(err, asked.Load())
	}
	var local atomic.Bool
	away := foreignTransport(&http.Transport{}, mustURL("https://93.184.216.34"), &local)
	for _, u := range []string{other.URL, "http://169.254.169.254/latest", "http://0.0.0.0:1/", "http://[::1]:1/"} {
		req, _ := http.NewRequest("GET", u, nil)
		if _, err := away.RoundTrip(req); err == nil || temporary(networkError("x", err)) || !strings.Contains(err.Error(), "may not lead there") {
			t.Errorf("%s: %v", u, err)
		}
	}
	local.Store(true) // the registry is on this machine
	req, _ := http.NewRequest("GET", other.URL, nil)
	if _, err := away.RoundTrip(req); err != nil {
		t.Error(err)
	}
	// A proxy is where the environment says, not where the registry does.
	local.Store(false)
	away = foreignTransport(&http.Transport{Proxy: http.ProxyURL(mustURL(other.URL))}, mustURL("https://93.184.216.34"), &local)
	req, _ = http.NewRequest("GET", "http://93.184.216.35/", nil)
	if _, err := away.RoundTrip(req); err != nil {
		t.Error(err)
	}
}
