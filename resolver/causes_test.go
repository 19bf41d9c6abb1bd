package resolver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestCauses checks that each failure of a registry or of the network has its own cause.
func TestCauses(t *testing.T) {
	t.Parallel()
	plain := registrytest.New(t)
	unknown := registrytest.NewTLS(t, nil)
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
	expired := withCertificate(t, time.Now().Add(-time.Hour), net.IPv4(127, 0, 0, 1))
	elsewhere := withCertificate(t, time.Now().Add(time.Hour), net.IPv4(127, 0, 0, 2))
	silent := registrytest.New(t)
	silent.Fault = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	for name, tc := range map[string]struct {
		host, scheme string
		want         cause.Kind
		code         int
		ca           []byte // nil: the machine's authorities
	}{
		"no such tag":                    {plain.Host, "http", cause.Tag, 3, nil},
		"401":                            {status(401), "http", cause.Unauthorized, 4, nil},
		"403":                            {status(403), "http", cause.Forbidden, 4, nil},
		"429":                            {status(429), "http", cause.RateLimited, 5, nil},
		"500":                            {status(500), "http", cause.RegistryFailed, 5, nil},
		"an answer of no registry":       {status(418), "http", cause.RegistryFailed, 5, nil},
		"nobody listens":                 {nobody, "http", cause.Refused, 5, nil},
		"a cut connection":               {cut.Host, "http", cause.Broken, 5, nil},
		"no answer":                      {silent.Host, "http", cause.Timeout, 5, nil},
		"a name that is not found":       {"registry.invalid", "https", cause.DNS, 5, nil},
		"an unknown authority":           {unknown.Host, "https", cause.Certificate, 5, nil},
		"HTTP to a port for TLS":         {unknown.Host, "http", cause.HTTPToTLS, 5, nil},
		"TLS to a port for HTTP":         {plain.Host, "https", cause.TLSToHTTP, 5, nil},
		"a certificate that has expired": {expired.Host, "https", cause.CertificateExpired, 5, expired.CA},
		"a certificate of another name":  {elsewhere.Host, "https", cause.CertificateName, 5, elsewhere.CA},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			files := map[string][]byte{"hosts.toml": []byte("server = \"" + tc.scheme + "://" + tc.host + "\"\n")}
			if tc.ca != nil {
				files["hosts.toml"] = append(files["hosts.toml"], "ca = \"ca.pem\"\n"...)
				files["ca.pem"] = tc.ca
			}
			r, err := New(&Options{
				HostsDir: registrytest.CertsDir(t, tc.host, files), Attempts: 1, Backoff: time.Millisecond,
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

// withCertificate starts a registry with a self-signed certificate that is valid until end, for one
// address.
func withCertificate(t *testing.T, end time.Time, address net.IP) *registrytest.Registry {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: end.Add(-24 * time.Hour), NotAfter: end,
		IPAddresses: []net.IP{address}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return registrytest.NewTLS(t, func(s *httptest.Server) {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	})
}
