package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// command returns the program with arguments and additional environment variables. The test binary behaves as the
// program if it is called by the program's name.
func command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "tank-snapshotter")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patienceOfTests)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(append(os.Environ(), "HOME="+t.TempDir(), "DOCKER_CONFIG=", "TANK_CACHE="), env...)
	return cmd
}

// output runs the program and returns stdout, stderr and the exit code.
func output(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := command(t, nil, args...)
	var out, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &e
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), e.String(), cmd.ProcessState.ExitCode()
}

// hostile has every kind of character that a terminal interprets: C0, DEL, C1 as UTF-8 and bidi controls, and
// a line that looks like a message of the program.
const hostile = "x\x1b]0;t\x07\x7f\u009b31m\nfake\r\u202e"

// TestEscapes: commands escape all text that registries, images and other processes have chosen.
func TestEscapes(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	layer := func(name string) (ocispec.Descriptor, digest.Digest) {
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644}), w.Close()); err != nil {
			t.Fatal(err)
		}
		return reg.Blob(ocispec.MediaTypeImageLayer, raw.Bytes()), digest.FromBytes(raw.Bytes())
	}
	image := func(tag string, p ocispec.Platform) {
		l, diffID := layer("greeting")
		reg.Image(tag, p, []ocispec.Descriptor{l}, []digest.Digest{diffID})
	}
	pull := func(t *testing.T, ref string, args ...string) (string, string, string) {
		root := filepath.Join(t.TempDir(), "root")
		out, e, _ := output(t, append([]string{"pull", "--root", root, "--progress", "plain", reg.Host + ref},
			args...)...)
		return root, out, e
	}
	for name, f := range map[string]func(t *testing.T) (printed []string){
		"os": func(t *testing.T) []string {
			image("os", ocispec.Platform{OS: hostile, Architecture: "amd64"})
			_, out, e := pull(t, "/hello:os")
			return []string{out, e}
		},
		"variant": func(t *testing.T) []string {
			image("variant", ocispec.Platform{OS: "linux", Architecture: "arm", Variant: hostile})
			_, out, e := pull(t, "/hello:variant", "--platform", "linux/arm64")
			return []string{out, e}
		},
		"a label in JSON": func(t *testing.T) []string {
			l, diffID := layer("greeting")
			config := reg.Blob(ocispec.MediaTypeImageConfig, registrytest.JSON(ocispec.Image{
				Platform: platforms.DefaultSpec(), Config: ocispec.ImageConfig{Labels: map[string]string{"l": hostile}},
				RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
			}))
			reg.Manifest("label", ocispec.MediaTypeImageManifest, registrytest.JSON(ocispec.Manifest{
				MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{l},
				Annotations: map[string]string{"a": hostile},
			}))
			root, out, e := pull(t, "/hello:label", "--json")
			if !strings.Contains(out, `\u009b31m`) {
				t.Errorf("the label is lost: %s", out)
			}
			inspected, e2, _ := output(t, "inspect", "--root", root, reg.Host+"/hello:label")
			return []string{out, e, inspected, e2}
		},
		"the name of a file": func(t *testing.T) []string {
			l, diffID := layer(hostile)
			reg.Image("file", platforms.DefaultSpec(), []ocispec.Descriptor{l}, []digest.Digest{diffID})
			root, out, e := pull(t, "/hello:file")
			if err := os.Remove(filepath.Join(strings.TrimSuffix(out, "\n"), hostile)); err != nil {
				t.Fatal(err, e)
			}
			text, e1, code := output(t, "check", "--root", root)
			asJSON, e2, _ := output(t, "check", "--json", "--root", root)
			if code != exitContent || !strings.Contains(text, `\x1b`) {
				t.Errorf("check: exit code %d: %s", code, text)
			}
			return []string{e, text, e1, asJSON, e2}
		},
		"a certificate": func(t *testing.T) []string {
			dir := t.TempDir()
			secure := registrytest.NewTLS(t, func(s *httptest.Server) {
				s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t, filepath.Join(dir, "ca.crt"),
					"x\x1b[31m\x7f.example")}}
			})
			hosts := filepath.Join(dir, strings.Replace(secure.Host, ":", "_", 1)+"_")
			toml := "server = \"https://" + secure.Host + "\"\nca = \"" + filepath.Join(dir, "ca.crt") + "\"\n"
			if err := errors.Join(os.Mkdir(hosts, 0o755), os.WriteFile(filepath.Join(hosts, "hosts.toml"),
				[]byte(toml), 0o600)); err != nil {
				t.Fatal(err)
			}
			out, e, _ := output(t, "pull", "--root", filepath.Join(dir, "root"), "--hosts-dir", dir,
				secure.Host+"/hello:1")
			if !strings.Contains(e, "certificate") {
				t.Errorf("the error does not mention the certificate: %s", e)
			}
			return []string{out, e}
		},
		"the text in lock": func(t *testing.T) []string {
			image("lock", platforms.DefaultSpec())
			root, _, _ := pull(t, "/hello:lock")
			if err := os.WriteFile(filepath.Join(root, "lock"), []byte(hostile), 0o600); err != nil {
				t.Fatal(err)
			}
			out, e, _ := output(t, "images", "--root", root)
			return []string{out, e}
		},
		"a redirect": func(t *testing.T) []string {
			r := registrytest.New(t)
			r.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Location", "http://\u009b31m\u202e.invalid/x")
				w.WriteHeader(http.StatusTemporaryRedirect)
				return true
			})
			out, e, _ := output(t, "pull", "--root", filepath.Join(t.TempDir(), "root"), r.Host+"/hello:1")
			return []string{out, e}
		},
		"arguments": func(t *testing.T) []string {
			out, e, _ := output(t, "pull", "--root", t.TempDir(), "--platform", hostile, "x:1")
			out2, e2, _ := output(t, hostile)
			return []string{out, e, out2, e2}
		},
		"a digest of 100 KB": func(t *testing.T) []string {
			out, e, _ := output(t, "pull", "--root", t.TempDir(), "x@sha256:"+strings.Repeat("a", 100<<10))
			if len(e) > 10<<10 {
				t.Errorf("%d bytes are printed", len(e))
			}
			return []string{out, e}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, s := range f(t) {
				for _, line := range strings.Split(s, "\n") {
					if strings.HasPrefix(line, "fake") || strings.ContainsFunc(line,
						func(r rune) bool { return unicode.Is(unicode.C, r) }) {
						t.Errorf("printed: %q", s)
						break
					}
				}
			}
		})
	}
}

// certificate makes a self-signed certificate for a name and writes it to a file.
func certificate(t *testing.T, file, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true,
		BasicConstraintsValid: true,
		NotBefore:             time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
