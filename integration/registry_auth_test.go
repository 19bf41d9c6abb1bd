package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// alicePassword as bcrypt, which is what the registry's htpasswd files have. Cost 4 keeps the registry
// from computing long.
const (
	alicePassword = "se:cret"
	aliceEntry    = "alice:$2a$04$oQfGt8bUt0Aj7qai3LgpfeSbadiX9cgJile2/YN1LkRB.snBVub9S\n"
)

// TestRegistryAuth: pull from the distribution registry, with its own htpasswd and token
// authentication, over HTTP and TLS. In the rows with a front the token server has the registry's own
// address, as with Harbor; in the others it has another address and gets no password.
func TestRegistryAuth(t *testing.T) {
	for _, row := range []struct {
		name        string
		auth        string // htpasswd, token or none
		tls, front  bool
		open        bool // the token server serves everybody
		login       string
		code        int
		passwordOut bool // a password reached the token server
	}{
		{name: "none over TLS", auth: "none", tls: true},
		{name: "htpasswd", auth: "htpasswd", login: alicePassword},
		{name: "htpasswd over TLS", auth: "htpasswd", tls: true, login: alicePassword},
		{name: "htpasswd, wrong password", auth: "htpasswd", login: "guess", code: 4},
		{name: "htpasswd, no password", auth: "htpasswd", code: 4},
		{name: "token", auth: "token", front: true, login: alicePassword, passwordOut: true},
		{name: "token over TLS", auth: "token", tls: true, front: true, login: alicePassword, passwordOut: true},
		{name: "token, wrong password", auth: "token", front: true, login: "guess", code: 4, passwordOut: true},
		{name: "token, no password", auth: "token", front: true, code: 4},
		{name: "token for everybody", auth: "token", open: true},
		{name: "token for everybody over TLS", auth: "token", tls: true, open: true},
		{name: "token server elsewhere", auth: "token", tls: true, login: alicePassword, code: 4},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := New(t)
			f := OwnFixture(t)
			e.NewRegistry().Push(f.Layout, f.Ref, f.Name) // whose files the registry of the test has too
			certs := newCertificate(t, e)
			r := &authRegistry{env: e, certs: certs, tls: row.tls, auth: row.auth,
				tokens: &tokenServer{t: t, certs: certs, open: row.open}}
			host := r.start(row.front)
			t.Setenv("DOCKER_CONFIG", dockerLogin(t, e, host, row.login))

			k := e.NewTank()
			result := k.Run("pull", "--progress", "none", "--hosts-dir", certsD(t, e, host, certs, row.tls),
				host+"/"+f.Name)
			if result.Code != row.code {
				t.Fatalf("want exit %d: %s", row.code, result)
			}
			if strings.Contains(result.Stderr+result.Stdout, alicePassword) {
				t.Errorf("the output contains the password: %s", result)
			}
			if out := r.tokens.passwords.Load() > 0; out != row.passwordOut {
				t.Errorf("password at the token server: %v", out)
			}
			if row.code != 0 {
				return
			}
			CheckTree(t, "pull", f.Tree, strings.TrimSpace(result.Stdout))
			if n := r.tokens.issued.Load(); row.auth == "token" && n != 1 {
				t.Errorf("%d tokens for one pull", n)
			}
		})
	}
}

// dockerLogin writes what `docker login` writes, and returns the directory.
func dockerLogin(t *testing.T, e *Env, host, password string) string {
	t.Helper()
	auths := map[string]any{}
	if password != "" {
		auths[host] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("alice:" + password))}
	}
	return writeFiles(t, e.Path("docker"), map[string][]byte{"config.json": mustJSON(map[string]any{"auths": auths})})
}

// certsD makes a directory of hosts.toml files for a registry with or without TLS.
func certsD(t *testing.T, e *Env, host string, c *certificate, tls bool) string {
	t.Helper()
	root := e.Path("certs.d")
	files := map[string][]byte{}
	if tls {
		files["ca.crt"] = c.certPEM
		files["hosts.toml"] = fmt.Appendf(nil, "server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n",
			host)
	}
	writeFiles(t, filepath.Join(root, strings.ReplaceAll(host, ":", "_")+"_"), files)
	return root
}

func writeFiles(t *testing.T, dir string, files map[string][]byte) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// certificate is for servers on 127.0.0.1, and its key signs the tokens too.
type certificate struct {
	key               *ecdsa.PrivateKey
	der               []byte
	certPEM           []byte
	certFile, keyFile string
}

func newCertificate(t *testing.T, e *Env) *certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := &certificate{key: key, der: der, certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	dir := writeFiles(t, e.Path("tls"), map[string][]byte{
		"cert.pem": c.certPEM, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	})
	c.certFile, c.keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	return c
}

// serve starts a server of the test's own.
func (c *certificate) serve(t *testing.T, h http.Handler, withTLS bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	t.Cleanup(s.Close)
	if !withTLS {
		s.Start()
		return s
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	return s
}

// authRegistry is a registry over the files of the environment's own one.
type authRegistry struct {
	env    *Env
	certs  *certificate
	tls    bool
	auth   string
	tokens *tokenServer
}

// start returns the address that clients use: the registry's own, or that of a front which also is the token server.
func (r *authRegistry) start(front bool) string {
	t, scheme := r.env.t.(*testing.T), "http"
	if r.tls {
		scheme = "https"
	}
	address := freeAddr(r.env)
	if !front {
		realm := r.certs.serve(t, r.tokens, r.tls).URL + "/token"
		r.run(address, realm, r.tls)
		return address
	}
	back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	s := r.certs.serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/token" {
			r.tokens.ServeHTTP(w, req)
			return
		}
		back.ServeHTTP(w, req)
	}), r.tls)
	public := strings.TrimPrefix(s.URL, scheme+"://")
	r.run(address, s.URL+"/token", false)
	return public
}

func (r *authRegistry) run(address, realm string, withTLS bool) {
	t := r.env.t
	config := strings.TrimSuffix(registryConfig(r.env.Path("registry"), address), "\n") + "\n"
	if withTLS {
		config = strings.Replace(config, "http: {addr: "+address+"}",
			fmt.Sprintf("http: {addr: %s, tls: {certificate: %s, key: %s}}", address, r.certs.certFile,
				r.certs.keyFile), 1)
	}
	switch r.auth {
	case "htpasswd":
		file := r.env.Path("htpasswd")
		if err := os.WriteFile(file, []byte(aliceEntry), 0o600); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", file)
	case "token":
		config += fmt.Sprintf("auth: {token: {realm: %q, service: test-registry, issuer: test-issuer, "+
			"rootcertbundle: %s}}\n", realm, r.certs.certFile)
	}
	name := r.env.Path("auth-registry.yml")
	if err := os.WriteFile(name, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := r.env.Start("auth-registry", "registry", "serve", name)
	Eventually(t, 20*time.Second, "the registry listens", func() bool {
		if !p.Running() {
			t.Fatalf("registry ended: %s", tail(p.Log, 4000))
		}
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// tokenServer signs tokens as the registry wants them: JSON web tokens with ES256, the certificate in their header.
type tokenServer struct {
	t         *testing.T
	certs     *certificate
	open      bool
	passwords atomic.Int32 // requests that had one
	issued    atomic.Int32
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	if ok {
		s.passwords.Add(1)
	}
	if !s.open && (user != "alice" || password != alicePassword) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var access []map[string]any
	for _, scope := range r.URL.Query()["scope"] {
		parts := strings.Split(scope, ":")
		if len(parts) != 3 || parts[0] != "repository" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		access = append(access, map[string]any{"type": parts[0], "name": parts[1], "actions": []string{"pull"}})
	}
	now := time.Now().Unix()
	token, err := s.sign(map[string]any{
		"iss": "test-issuer", "sub": user, "aud": r.URL.Query().Get("service"), "nbf": now - 10, "iat": now,
		"exp": now + 300, "jti": randomHex(8), "access": access,
	})
	if err != nil {
		s.t.Error(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	s.issued.Add(1)
	w.Write(mustJSON(
		map[string]any{"token": token, "expires_in": 300, "issued_at": time.Now().UTC().Format(time.RFC3339)}))
}

// sign makes a JSON web token (RFC 7515, RFC 7519).
func (s *tokenServer) sign(claims map[string]any) (string, error) {
	encode := base64.RawURLEncoding.EncodeToString
	header := map[string]any{"typ": "JWT", "alg": "ES256",
		"x5c": []string{base64.StdEncoding.EncodeToString(s.certs.der)}}
	signed := encode(mustJSON(header)) + "." + encode(mustJSON(claims))
	hash := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, s.certs.key, hash[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return signed + "." + encode(signature), nil
}
