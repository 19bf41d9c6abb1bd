package resolver

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestD01ForeignChallenge checks that the target of a redirect gets no credentials, and no token
// that credentials obtained, whatever it asks for. It may issue anonymous tokens.
func TestD01ForeignChallenge(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	var leaked atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(r.Header.Get("Authorization") + r.URL.Path)
		}
		registrytest.Answer(401, nil, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, r.Host),
			"WWW-Authenticate", "Basic realm=x")(w, r)
	}))
	defer other.Close()
	reg.Guard = registrytest.First(registrytest.Basic("alice", "se:cret"),
		registrytest.On("/blobs/", registrytest.Redirect(307, other.URL)))
	r := newResolver(t, func(o *Options) { o.Credentials = always(alice) })
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); !errdefs.IsUnauthorized(err) ||
		leaked.Load() != nil {
		t.Fatal(err, leaked.Load())
	}
}

// TestD01ClientCertificate checks that a client certificate is shown to the registry only, and not
// to the target of a redirect or a challenge, also with HTTP/2.
func TestD01ClientCertificate(t *testing.T) {
	asks := func(want tls.ClientAuthType) func(*httptest.Server) {
		return func(s *httptest.Server) { s.TLS = &tls.Config{ClientAuth: want} }
	}
	reg, other := registrytest.NewTLS(t, asks(tls.RequireAnyClientCert)),
		registrytest.NewTLS(t, asks(tls.RequestClientCert))
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
			return registrytest.Answer(401, nil, "WWW-Authenticate",
				fmt.Sprintf(`Bearer realm="https://%s/token"`, other.Host))(w, r)
		}
		for _, d := range data {
			if strings.HasSuffix(r.URL.Path, digest.FromBytes(d).String()) {
				return registrytest.Redirect(307, "https://"+other.Host)(w, r)
			}
		}
		return false
	}
	cert, key := registrytest.KeyPair(t)
	dir := registrytest.CertsDir(t, reg.Host,
		map[string][]byte{"ca.crt": reg.CA, "client.cert": cert, "client.key": key, "hosts.toml": fmt.Appendf(nil,
			"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n"+
				"client = [[\"client.cert\", \"client.key\"]]\n", reg.Host)})
	r := newResolver(t, func(o *Options) { o.HostsDir = dir })
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	if shown.Load() != 0 || blobs.Load() != 3 || http2.Load() == 0 {
		t.Errorf("%d certificates shown, %d requests, %d by HTTP/2", shown.Load(), blobs.Load(), http2.Load())
	}
}

// TestD04URLs checks that the urls of a descriptor are not used.
func TestD04URLs(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	reg := registrytest.New(t)
	// Only another registry has the layer.
	l := registrytest.New(t).Blob("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", []byte("layer"))
	l.URLs = []string{other.URL + "/layer"}
	reg.Image("1", amd64, []ocispec.Descriptor{l}, []digest.Digest{l.Digest})
	if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); !errdefs.IsNotFound(err) ||
		asked.Load() != 0 {
		t.Fatal(err, asked.Load())
	}
}
