package resolver

// The tests with a number D01 to D23 show the rows of table D in docs/cases.md. They are in this
// file and in the other files of this package, in auth (D24, D25), in internal/registry (D01, D02,
// D04, D18) and in internal/retry (D19).
//
// These rows are tested elsewhere:
//
//   - D16, an image that names a blob which the registry did not serve for it: package content;
//   - D17, layers that claim the diff ID of another layer: package snapshot;
//   - D26, a pull without network, and D27, a refresh that fails: package tank and
//     cmd/tank-snapshotter.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/platform"
	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// waits makes r record its waits instead of waiting.
func waits(r *Resolver) func() []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	r.sleep = func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, d)
		return ctx.Err()
	}
	return func() []time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

// TestD19Waits checks that temporary errors are repeated after the requested waits, a bounded
// number of times.
func TestD19Waits(t *testing.T) {
	for _, tc := range []struct {
		testName string
		status   int
		after    string
		times    int32
		class    error
		least    time.Duration // of each wait
		waits    int
	}{
		{"429, three times", 429, "2", 3, nil, 2 * time.Second, 3},
		{"503", 503, "1", 1, nil, time.Second, 1},
		{"503 with a date", 503, time.Now().Add(10 * time.Second).UTC().Format(http.TimeFormat), 1, nil,
			8 * time.Second, 1},
		{"429 for a minute", 429, "60", 1, nil, time.Minute, 1},
		{"429 without a wait", 429, "", 2, nil, time.Millisecond, 2},
		{"429 with garbage", 429, "-5", 1, nil, time.Millisecond, 1},
		{"408", 408, "", 1, nil, time.Millisecond, 1},
		{"500", 500, "", 1, nil, time.Millisecond, 1},
		{"502", 502, "", 1, nil, time.Millisecond, 1},
		{"504", 504, "", 1, nil, time.Millisecond, 1},
		{"429 for ever", 429, "2", 1000, errdefs.ErrUnavailable, 2 * time.Second, 4},
		{"403", 403, "2", 1000, errdefs.ErrPermissionDenied, 0, 0},
		{"404", 404, "2", 1000, errdefs.ErrNotFound, 0, 0},
		{"418", 418, "2", 1000, errdefs.ErrUnknown, 0, 0},
	} {
		for _, part := range []string{"/manifests/", "/blobs/", "/token"} {
			t.Run(tc.testName+part, func(t *testing.T) {
				reg, tokens := registrytest.New(t), registrytest.NewTokenServer(t)
				l := reg.Blob(ocispec.MediaTypeImageLayerGzip, []byte("layer"))
				reg.Image("1", amd64, []ocispec.Descriptor{l}, []digest.Digest{l.Digest})
				headers := []string{}
				if tc.after != "" {
					headers = append(headers, "Retry-After", tc.after)
				}
				fault := registrytest.On(part,
					registrytest.Times(tc.times, registrytest.Answer(tc.status, []byte("no"), headers...)))
				reg.Fault = fault
				if part == "/token" {
					reg.Guard, tokens.Fault = tokens.Guard, fault
				}
				r := newResolver(t, func(o *Options) { o.Attempts = 5 })
				waited := waits(r)
				_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
				if part == "/token" && tc.class == errdefs.ErrNotFound {
					if !errdefs.IsUnauthorized(err) {
						t.Fatal(err)
					}
				} else if !isClass(err, tc.class) {
					t.Fatal(err)
				}
				if len(waited()) != tc.waits {
					t.Errorf("waits %v", waited())
				}
				for _, d := range waited() {
					if d < tc.least || d > tc.least+10*time.Second {
						t.Errorf("waited %v, not about %v", d, tc.least)
					}
				}
			})
		}
	}
}

// TestD19RetryAfterFar checks that a wait of hours is an error at once that states when to try
// again.
func TestD19RetryAfterFar(t *testing.T) {
	t.Parallel()
	// In the middle of a minute, so that a few seconds do not change the minute.
	when := time.Now().Add(6 * time.Hour).UTC().Truncate(time.Minute).Add(30 * time.Second)
	in := fmt.Sprint(int(time.Until(when).Seconds()))
	for _, after := range []string{in, fmt.Sprint(when.Unix()), when.Format(http.TimeFormat), "61"} {
		for _, status := range []int{429, 503} {
			for _, part := range []string{"/manifests/", "/blobs/", "/token"} {
				reg, tokens := registrytest.New(t), registrytest.NewTokenServer(t)
				image(reg)
				fault := registrytest.On(part, registrytest.Answer(status, nil, "Retry-After", after))
				if reg.Fault = fault; part == "/token" {
					reg.Guard, tokens.Fault = tokens.Guard, fault
				}
				r := newResolver(t, nil)
				waited := waits(r)
				_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
				if !errdefs.IsUnavailable(err) || len(waited()) != 0 {
					t.Fatalf("%d, %s, %s: %v, waits %v", status, part, after, err, waited())
				}
				if want := "try again after " + when.Format("2006-01-02 15:04"); after != "61" &&
					!strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v does not contain %q", after, err, want)
				}
				if n := reg.Count(part); part == "/manifests/" && n != 1 {
					t.Errorf("%d requests", n)
				}
			}
		}
	}
}

// TestD22Headers checks that the headers of an answer are bounded.
func TestD22Headers(t *testing.T) {
	raw := func(head string) registrytest.Fault {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return false
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			_, _ = rw.WriteString(head)
			rw.Flush()
			return true
		}
	}
	for name, head := range map[string]string{
		"10 MB in one":       "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 10<<20) + "\r\n\r\n",
		"10^5":               "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1e5) + "\r\n",
		"1xx":                strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1e5) + "HTTP/1.1 200 OK\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"length and chunked": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"not HTTP":           "220 mail.example.com ESMTP\r\n",
		"nothing":            "",
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			image(reg)
			reg.Fault = registrytest.On("/manifests/", raw(head))
			_, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
			if !errdefs.IsUnavailable(err) && !errdefs.IsDataLoss(err) || len(reg.Requests()) > 3 ||
				len(err.Error()) > 1000 {
				t.Fatalf("%.2000v, %d requests", err, len(reg.Requests()))
			}
		})
	}
}

// TestD23TLS checks that a wrong certificate ends the request, without another attempt and without
// HTTP.
func TestD23TLS(t *testing.T) {
	unknown := registrytest.NewTLS(t, nil)
	image(unknown)
	plain := registrytest.New(t)
	image(plain)
	own := func(reg *registrytest.Registry, name string) string {
		return registrytest.CertsDir(t, name,
			map[string][]byte{"ca.crt": unknown.CA, "hosts.toml": fmt.Appendf(nil, "server = \"https://%s\"\n"+
				"[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", reg.Host)})
	}
	empty := registrytest.CertsDir(t, unknown.Host,
		map[string][]byte{"hosts.toml": fmt.Appendf(nil, "server = \"https://%s\"\n", unknown.Host)})
	old := registrytest.NewTLS(t, func(s *httptest.Server) { s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11} })
	image(old)
	for _, tc := range []struct {
		testName, dir string
		reg           *registrytest.Registry
		ok            bool
	}{
		{"known", own(unknown, unknown.Host), unknown, true},
		{"unknown authority", empty, unknown, false},
		{"HTTP behind https", own(plain, plain.Host), plain, false},
		{"TLS 1.1", own(old, old.Host), old, false},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			r := newResolver(t, func(o *Options) { o.HostsDir = tc.dir })
			waited := waits(r)
			before := len(tc.reg.Requests())
			_, err := pull(t.Context(), r, newStore(t), tc.reg.Host+"/x:1", nil)
			if (err == nil) != tc.ok || err != nil && !errdefs.IsUnavailable(err) {
				t.Fatal(err)
			}
			if !tc.ok && len(tc.reg.Requests()) != before {
				t.Errorf("asked without TLS: %q", tc.reg.Requests())
			}
			if tc.testName == "unknown authority" && len(waited()) != 0 {
				t.Errorf("waited %v for another certificate", waited())
			}
		})
	}
	t.Run("other name", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(unknown.Host)
		name := "localhost:" + port // the certificate is for 127.0.0.1 and example.com
		dir := registrytest.CertsDir(t, name,
			map[string][]byte{"ca.crt": unknown.CA, "hosts.toml": fmt.Appendf(nil, "server = \"https://%s\"\n"+
				"[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", name)})
		before := len(unknown.Requests())
		r := newResolver(t, func(o *Options) { o.HostsDir = dir })
		if _, err := pull(t.Context(), r, newStore(t), name+"/x:1", nil); !errdefs.IsUnavailable(err) ||
			len(unknown.Requests()) != before {
			t.Fatal(err)
		}
	})
	t.Run("no plain HTTP by default", func(t *testing.T) {
		r := quick(t)
		repo, err := r.client.Repository(t.Context(), "r.example.com", "x")
		if err != nil || len(repo.Hosts) != 1 || repo.Hosts[0].Scheme != "https" {
			t.Fatal(repo, err)
		}
		for _, name := range []string{"localhost:5000", "127.0.0.1:5000", "[::1]:5000"} {
			if repo, err := r.client.Repository(t.Context(), name, "x"); err != nil || repo.Hosts[0].Scheme != "http" {
				t.Error(name, repo, err)
			}
		}
	})
}

// TestD24Secrets checks that no error and no log line contains a password, a token or the signature
// of a URL.
func TestD24Secrets(t *testing.T) {
	var out bytes.Buffer
	logger := log.L.Logger
	was, level := logger.Out, logger.GetLevel()
	logger.SetOutput(&out)
	_ = log.SetLevel("trace")
	defer func() {
		logger.SetOutput(was)
		logger.SetLevel(level)
	}()
	ctx := t.Context()
	signed := func(base string) registrytest.Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", base+r.URL.Path+"?X-Signature=hush")
			w.WriteHeader(307)
			return true
		}
	}
	for name, fault := range map[string]registrytest.Fault{
		"unreachable":   signed("http://127.0.0.1:1"),
		"refused":       signed("http://169.254.169.254"),
		"no URL":        signed("http://%zz:hush@h"),
		"to https":      nil,
		"status":        registrytest.Answer(500, []byte("hush")),
		"cut":           registrytest.Answer(200, []byte("hush"), "Content-Range", "bytes hush"),
		"content range": registrytest.Answer(206, []byte("x")),
		"unauthorized again": registrytest.Answer(401, nil, "WWW-Authenticate",
			`Bearer realm="ftp://x?hush",scope="hush"`),
	} {
		t.Run(name, func(t *testing.T) {
			reg, tokens := guarded(t)
			tokens.Users = map[string]string{"alice": "hush"}
			if fault == nil {
				other := httptest.NewTLSServer(http.NotFoundHandler())
				defer other.Close()
				fault = signed(other.URL)
			}
			guard := reg.Guard
			reg.Guard = registrytest.First(guard, registrytest.On("/blobs/", fault))
			r := newResolver(t, func(o *Options) {
				o.Credentials = always(auth.Credential{Username: "alice", Password: "hush"})
				o.Realms = map[string][]string{reg.Host: {registrytest.MustURL(tokens.URL).Host}}
			})
			_, err := pull(ctx, r, newStore(t), reg.Host+"/x:1", nil)
			if err == nil || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "token-") {
				t.Fatal(err)
			}
		})
	}
	t.Run("token server", func(t *testing.T) {
		for _, fault := range []registrytest.Fault{
			registrytest.Answer(200, []byte("hush")), registrytest.Answer(200, []byte(`{"token":"hu sh"}`)),
			registrytest.Answer(401, []byte("hush")),
			registrytest.Answer(302, nil, "Location", "http://127.0.0.1:1/?hush"),
		} {
			reg, tokens := guarded(t)
			tokens.URL += "?key=hush"
			tokens.Fault = fault
			r := newResolver(t, func(o *Options) { o.Credentials = always(auth.Credential{IdentityToken: "hush"}) })
			if _, err := pull(ctx, r, newStore(t), reg.Host+"/x:1", nil); err == nil ||
				strings.Contains(err.Error(), "hu") && !strings.Contains(err.Error(), "http") {
				t.Fatal(err)
			} else if strings.Contains(err.Error(), "hush") {
				t.Fatal(err)
			}
		}
	})
	if out.Len() == 0 || strings.Contains(out.String(), "hush") || strings.Contains(out.String(), "token-") {
		t.Errorf("log: %s", out.String())
	}
}

// TestD13Choice checks that the platform alone decides which entry of an index is used.
func TestD13Choice(t *testing.T) {
	p := func(arch, variant string) ocispec.Platform {
		return ocispec.Platform{OS: "linux", Architecture: arch, Variant: variant}
	}
	entry := func(name string, p ocispec.Platform) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name),
			Platform: &p}
	}
	attestation := entry("attestation", ocispec.Platform{OS: "unknown", Architecture: "unknown"})
	for _, tc := range []struct {
		want ocispec.Platform
		all  []ocispec.Descriptor
		name string
	}{
		{p("amd64", ""),
			[]ocispec.Descriptor{attestation, entry("arm", p("arm64", "")), entry("one", p("amd64", "")),
				entry("two", p("amd64", ""))}, "one"},
		{p("arm", "v7"),
			[]ocispec.Descriptor{entry("v5", p("arm", "v5")), entry("v6", p("arm", "v6")), entry("v8", p("arm", "v8"))},
			"v6"},
		{p("arm", "v7"), []ocispec.Descriptor{entry("v6", p("arm", "v6")), entry("v7", p("arm", "v7"))}, "v7"},
		{p("arm64", ""), []ocispec.Descriptor{entry("v8", p("arm64", "v8"))}, "v8"},
		{p("amd64", ""), []ocispec.Descriptor{entry("v3", p("amd64", "v3")), entry("v1", p("amd64", ""))}, "v1"},
		{p("unknown", ""), []ocispec.Descriptor{attestation}, ""},
		{ocispec.Platform{OS: "unknown", Architecture: "unknown"}, []ocispec.Descriptor{attestation}, ""},
	} {
		f := &fetch{platform: platform.Of(tc.want)}
		got, _ := f.candidates(tc.all)
		if tc.name == "" && len(got) != 0 || tc.name != "" &&
			(len(got) == 0 || got[0].Digest != digest.FromString(tc.name)) {
			t.Errorf("%s: %v", platforms.Format(tc.want), got)
		}
	}
}

// TestMirrors checks that a mirror which fails, lies or lacks the image is skipped, and that it is
// told which registry is meant.
func TestMirrors(t *testing.T) {
	for name, fault := range map[string]registrytest.Fault{
		"404":          registrytest.Answer(404, nil),
		"500":          registrytest.Answer(500, nil),
		"401":          registrytest.Answer(401, nil),
		"other blob":   registrytest.On("/blobs/", registrytest.Answer(200, random(700_000)[1:])),
		"changed blob": registrytest.On("/blobs/", registrytest.Answer(200, make([]byte, 700_000))),
		"cut for ever": registrytest.On("/blobs/", registrytest.Cut(random(700_000), 100_000)),
	} {
		t.Run(name, func(t *testing.T) {
			mirror, reg := registrytest.New(t), registrytest.New(t)
			image(mirror)
			_, data := image(reg)
			var asked atomic.Value
			mirror.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				asked.Store(r.URL.Query().Get("ns"))
				return fault(w, r)
			}
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "r.example.com"), 0o700); err != nil {
				t.Fatal(err)
			}
			toml := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n"+
				"capabilities = [\"pull\", \"resolve\"]\n", reg.Host, mirror.Host)
			if err := os.WriteFile(filepath.Join(dir, "r.example.com", "hosts.toml"), []byte(toml), 0o600); err != nil {
				t.Fatal(err)
			}
			r := newResolver(t, func(o *Options) { o.HostsDir = dir })
			store := newStore(t)
			if _, err := pull(t.Context(), r, store, "r.example.com/x:1", nil); err != nil {
				t.Fatal(err)
			}
			holds(t, store, data[0])
			if asked.Load() != "r.example.com" {
				t.Errorf("ns is %v", asked.Load())
			}
		})
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Ranges: -1}, {ChunkSize: -1}, {Attempts: -1}, {Backoff: -1}, {StallTimeout: -1}} {
		if _, err := New(&o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
