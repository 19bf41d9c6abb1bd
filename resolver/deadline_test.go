package resolver

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/internal/retry"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// drip sends an answer byte by byte, so that it counts as stalled only after StallTimeout.
func drip(w http.ResponseWriter, r *http.Request) bool {
	for {
		_, _ = w.Write(make([]byte, 1))
		w.(http.Flusher).Flush()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
			return true
		}
	}
}

// TestSlowDocuments checks that a manifest, an index, a config and a token have a deadline, also if
// they come steadily, and that a layer has none.
func TestSlowDocuments(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	for _, part := range []string{"/manifests/1", "/manifests/sha256:", "config", "/token", "layer"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			reg, tokens := guarded(t)
			m, data := image(reg)
			reg.Index("multi", m)
			tag, path := "multi", part
			switch part {
			case "/manifests/1":
				tag = "1"
			case "config":
				path = "/blobs/" + configOf(t, reg, m).Digest.String()
			case "layer":
				path = layerPath(data[0])
			}
			reg.Fault = registrytest.On(path, drip)
			if part == "layer" {
				reg.Fault = registrytest.On(path, slowly(data[0], 2*limit))
			}
			tokens.Fault = registrytest.On("/token", registrytest.On(part, drip))
			r := newResolver(t, func(o *Options) { o.DocumentTimeout = limit })
			start := time.Now()
			_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:"+tag, nil)
			took := time.Since(start)
			if part == "layer" {
				if err != nil || took < 2*limit {
					t.Errorf("%v, after %v", err, took)
				}
				return
			}
			if !errdefs.IsUnavailable(err) || retry.IsTemporary(err) ||
				!strings.Contains(err.Error(), "no complete answer in time") {
				t.Error(err)
			}
			if took < limit || took > limit+10*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// configOf returns the descriptor of the config of a manifest that reg serves.
func configOf(t *testing.T, reg *registrytest.Registry, m ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	ref, err := ParseReference(reg.Host + "/x@" + m.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := newResolver(t, nil).Manifest(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return doc.Manifest.Config
}

// slowly sends data in eight pieces over a time.
func slowly(data []byte, over time.Duration) registrytest.Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := range 8 {
			time.Sleep(over / 8)
			_, _ = w.Write(data[len(data)*i/8 : len(data)*(i+1)/8])
			w.(http.Flusher).Flush()
		}
		return true
	}
}

// TestSlowMirror checks that a mirror that is too slow leaves enough time for the registry.
func TestSlowMirror(t *testing.T) {
	t.Parallel()
	hang := func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	for _, part := range []string{"/manifests/", "config"} {
		mirror, reg := registrytest.New(t), registrytest.New(t)
		m, _ := image(reg)
		image(mirror)
		path := part
		if part == "config" {
			path = "/blobs/" + configOf(t, reg, m).Digest.String()
		}
		mirror.Fault = registrytest.On(path, hang)
		dir := registrytest.CertsDir(t, "r.example.com:1", map[string][]byte{"hosts.toml": fmt.Appendf(nil,
			"server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", reg.Host,
			mirror.Host)})
		r := newResolver(t, func(o *Options) { o.HostsDir, o.DocumentTimeout = dir, time.Second })
		if _, err := pull(t.Context(), r, newStore(t), "r.example.com:1/x:1", nil); err != nil {
			t.Errorf("%s: %v", part, err)
		}
		if reg.Count(path) == 0 || mirror.Count(path) != 1 {
			t.Errorf("%s: the mirror was asked %q, the registry %q", part, mirror.Requests(), reg.Requests())
		}
	}
}

// TestWaitBehindDeadline checks that a fetch fails at once if a wait would exceed its deadline.
func TestWaitBehindDeadline(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	image(reg)
	reg.Fault = registrytest.On("/manifests/", registrytest.Answer(503, nil, "Retry-After", "30"))
	r := newResolver(t, func(o *Options) { o.DocumentTimeout = 20 * time.Second })
	start := time.Now()
	_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
	took := time.Since(start)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "try again after") || took > 10*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}
