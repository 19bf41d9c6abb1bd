package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("a", 64)
	for _, tc := range []struct{ in, full, short string }{
		{"alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"},
		{"docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"index.docker.io/me/x", "docker.io/me/x:latest", "me/x:latest"},
		{"localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"},
		{"localhost/x:1", "localhost/x:1", "localhost/x:1"},
		{"[::1]:5000/x:1", "[::1]:5000/x:1", "[::1]:5000/x:1"},
		{"ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"},
		{"alpine@sha256:" + hex, "docker.io/library/alpine@sha256:" + hex, "alpine@sha256:" + hex},
		{"alpine:1@sha256:" + hex, "docker.io/library/alpine:1@sha256:" + hex, "alpine:1@sha256:" + hex},
		{"", "", ""},
		{"Alpine", "", ""},
		{"a b", "", ""},
		{"alpine:", "", ""},
		{"alpine@sha256:12", "", ""},
		{"alpine@sha512:" + hex + hex, "", ""},
		{"alpine@sha256:" + hex + ":1", "", ""},
		{"https://alpine", "", ""},
		{"../x", "", ""},
		{hex, "", ""},
		{"exämple.com/x", "", ""},
	} {
		ref, err := ParseReference(tc.in)
		if tc.full == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: got %v, %v", tc.in, ref, err)
			}
			continue
		}
		if err != nil || ref.String() != tc.full || ref.Familiar() != tc.short {
			t.Errorf("%q: got %q, %q, %v", tc.in, ref, ref.Familiar(), err)
		}
		if again, err := ParseReference(ref.String()); err != nil || again.String() != ref.String() {
			t.Errorf("%q: normalizes to %q, which normalizes to %q, %v", tc.in, ref, again, err)
		}
	}
	ref, _ := ParseReference("h:1/p/q:t@sha256:" + hex)
	if ref.Domain() != "h:1" || ref.Path() != "p/q" || ref.Tag() != "t" ||
		ref.Digest() != digest.Digest("sha256:"+hex) {
		t.Errorf("parts: %q %q %q %q", ref.Domain(), ref.Path(), ref.Tag(), ref.Digest())
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"alpine", "localhost:5000/x", "[::1]:5000/x:1", "a@sha256:" + strings.Repeat("0", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again.String() != ref.String() {
			t.Fatalf("%q: %q: %q, %v", s, ref, again, err)
		}
	})
}

func newStore(tb testing.TB) content.Store {
	tb.Helper()
	s, err := local.NewStore(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// quick makes a resolver whose failing requests end soon.
func quick(tb testing.TB) *Resolver {
	tb.Helper()
	r, err := New(&Options{Backoff: time.Millisecond, StallTimeout: 2 * time.Second, Attempts: 3})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func random(n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(data)
	return data
}

// image adds an image of two layers under the tag 1, and returns the contents of the layers.
func image(reg *registrytest.Registry) (ocispec.Descriptor, [][]byte) {
	var layers []ocispec.Descriptor
	var diffIDs []digest.Digest
	data := [][]byte{random(700_000), random(900_000)}
	for _, d := range data {
		layers = append(layers, reg.Blob(ocispec.MediaTypeImageLayerGzip, d))
		diffIDs = append(diffIDs, digest.FromBytes(d))
	}
	return reg.Image("1", amd64, layers, diffIDs), data
}

func pull(ctx context.Context, r *Resolver, store content.Store, ref string, opts *FetchOptions) (*Image, error) {
	parsed, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	target, err := r.Resolve(ctx, parsed)
	if err != nil {
		return nil, err
	}
	return r.Fetch(ctx, store, parsed, target, &amd64, opts)
}

func TestFetch(t *testing.T) {
	ctx := t.Context()
	reg := registrytest.New(t)
	manifest, data := image(reg)
	reg.Index("multi", ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("arm"), Size: 3,
		Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"},
	}, manifest)
	store := newStore(t)

	var announced int
	var mu sync.Mutex
	done := map[digest.Digest]bool{}
	img, err := pull(ctx, quick(t), store, reg.Host+"/x:multi", &FetchOptions{
		OnImage: func(img *Image) error {
			announced++
			if reg.Count("/blobs/"+img.Layers[0].Digest.String()) != 0 {
				t.Error("a layer was requested before the image was announced")
			}
			return nil
		},
		Progress: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Done {
				done[e.Descriptor.Digest] = true
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if announced != 1 || img.Fetched != 5 || len(done) != 3 || len(img.Indexes) != 1 ||
		img.Manifest.Digest != manifest.Digest {
		t.Errorf("announced %d, done %v, image %+v", announced, done, img)
	}
	for i, l := range img.Layers {
		got, err := content.ReadBlob(ctx, store, l)
		if err != nil || !bytes.Equal(got, data[i]) {
			t.Errorf("layer %d differs: %v", i, err)
		}
	}
	before := len(reg.Requests())
	again, err := pull(ctx, quick(t), store, reg.Host+"/x:multi", nil)
	if err != nil || again.Fetched != 0 {
		t.Fatalf("again: %+v, %v", again, err)
	}
	if n := len(reg.Requests()) - before; n != 1 || reg.Count("/blobs/") != 3 {
		t.Errorf("a second fetch made %d requests: %q", n, reg.Requests())
	}
}

func TestRepeatedLayer(t *testing.T) {
	reg := registrytest.New(t)
	l := reg.Blob(ocispec.MediaTypeImageLayerGzip, random(10))
	d := digest.FromString("x")
	reg.Image("1", amd64, []ocispec.Descriptor{l, l, l}, []digest.Digest{d, d, d})
	img, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
	if err != nil || len(img.Layers) != 3 || reg.Count(l.Digest.String()) != 1 {
		t.Fatalf("%+v, %v, %q", img, err, reg.Requests())
	}
}

// TestRefused has one row for each wrong answer: the pull fails with the class, and the store gets
// no blob.
func TestRefused(t *testing.T) {
	manifestOf := func(reg *registrytest.Registry, edit func(string) string) {
		l := reg.Blob(ocispec.MediaTypeImageLayerGzip, []byte("layer"))
		c := reg.Blob(ocispec.MediaTypeImageConfig,
			[]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+l.Digest.String()+
				`"]}}`))
		s := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`,
			ocispec.MediaTypeImageManifest, registrytest.JSON(c), registrytest.JSON(l))
		reg.Manifest("1", ocispec.MediaTypeImageManifest, []byte(edit(s)))
	}
	answer := func(part string, f http.HandlerFunc) func(*registrytest.Registry) {
		return func(reg *registrytest.Registry) {
			image(reg)
			reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, part) {
					f(w, r)
					return true
				}
				return false
			}
		}
	}
	status := func(part string, code int) func(*registrytest.Registry) {
		return answer(part, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	replace := func(old, new string) func(*registrytest.Registry) {
		return func(reg *registrytest.Registry) {
			manifestOf(reg, func(s string) string {
				if !strings.Contains(s, old) {
					panic(old)
				}
				return strings.Replace(s, old, new, 1)
			})
		}
	}
	for _, tc := range []struct {
		testName string
		setup    func(*registrytest.Registry)
		ref      string
		class    error
	}{
		{"no tag", func(reg *registrytest.Registry) { image(reg) }, "/x:2", errdefs.ErrNotFound},
		{"no digest", func(reg *registrytest.Registry) { image(reg) }, "/x@" + digest.FromString("no").String(),
			errdefs.ErrNotFound},
		{"401", status("/manifests/", 401), "", errdefs.ErrUnauthenticated},
		{"403", status("/manifests/", 403), "", errdefs.ErrPermissionDenied},
		{"500", status("/manifests/", 500), "", errdefs.ErrUnavailable},
		{"blob 404", status("/blobs/", 404), "", errdefs.ErrNotFound},
		{"blob 403", status("/blobs/", 403), "", errdefs.ErrPermissionDenied},
		{"blob 429", status("/blobs/", 429), "", errdefs.ErrUnavailable},
		{"D06 wrong header digest", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("other").String())
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
		}), "", errdefs.ErrDataLoss},
		{"D06 malformed header digest", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha256:..")
			fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
		}), "", errdefs.ErrDataLoss},
		{"D05 by-digest lie", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("asked").String())
			fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
		}), "/x@" + digest.FromString("asked").String(), errdefs.ErrDataLoss},
		{"D12 endless manifest", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			chunk := bytes.Repeat([]byte(" "), 1<<20)
			for range 6 {
				_, _ = w.Write(chunk)
			}
		}), "", errdefs.ErrDataLoss},
		{"D10 both", replace(`"layers"`, `"manifests":[],"layers"`), "", errdefs.ErrDataLoss},
		{"D10 type outside", replace(ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex), "",
			errdefs.ErrDataLoss},
		{"D11 layers twice", replace(`"layers"`, `"layers":[],"layers"`), "", errdefs.ErrDataLoss},
		{"D11 Layers", replace(`"layers"`, `"Layers":[],"layers"`), "", errdefs.ErrDataLoss},
		{"D11 trailing", func(reg *registrytest.Registry) {
			manifestOf(reg, func(s string) string { return s + "{}" })
		}, "", errdefs.ErrDataLoss},
		{"D14 schema 1", replace(`"schemaVersion":2`, `"schemaVersion":1`), "", mediatype.ErrNotRootfs},
		{"D10 no image config", replace(ocispec.MediaTypeImageConfig, "application/x"), "", mediatype.ErrNotRootfs},
		{"D15 too many layers",
			replace(`"layers":[`,
				`"layers":[{"mediaType":"`+ocispec.MediaTypeImageLayer+`","digest":"`+digest.FromString("").String()+
					`","size":1},`), "", errdefs.ErrDataLoss},
		{"sha512 layer", replace(`"layers":[{"mediaType":"`+ocispec.MediaTypeImageLayerGzip+`","digest":"`,
			`"layers":[{"mediaType":"`+ocispec.MediaTypeImageLayerGzip+`","digest":"sha512:`), "", errdefs.ErrDataLoss},
		{"D15 huge config", replace(`"size":`, `"size":99999999`), "", errdefs.ErrDataLoss},
		{"D15 other platform", func(reg *registrytest.Registry) {
			reg.Image("1", ocispec.Platform{OS: "linux", Architecture: "s390x"}, nil, nil)
		}, "", errdefs.ErrNotFound},
		{"index of others", func(reg *registrytest.Registry) {
			reg.Index("1", reg.Image("", ocispec.Platform{OS: "linux", Architecture: "s390x"}, nil, nil))
		}, "", errdefs.ErrNotFound},
		{"D13 nested", func(reg *registrytest.Registry) {
			d := reg.Image("", amd64, nil, nil)
			for range MaxNesting + 1 {
				d.Platform = nil
				d = reg.Index("1", d)
			}
		}, "", errdefs.ErrDataLoss},
		{"D07 longer blob", answer("/blobs/", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(random(2_000_000))
		}), "", errdefs.ErrDataLoss},
		{"D07 other blob", func(reg *registrytest.Registry) {
			_, data := image(reg)
			evil := bytes.Clone(data[0])
			evil[5] ^= 1
			reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, digest.FromBytes(data[0]).String()) {
					_, _ = w.Write(evil)
					return true
				}
				return false
			}
		}, "", errdefs.ErrDataLoss},
		{"D05 by-digest lie, with the digest of the lie",
			answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
				body := `{"schemaVersion":2,"manifests":[]}`
				w.Header().Set("Docker-Content-Digest", digest.FromString(body).String())
				fmt.Fprint(w, body)
			}), "/x@" + digest.FromString("asked").String(), errdefs.ErrDataLoss},
		{"D09 manifest", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(200)
		}), "", errdefs.ErrDataLoss},
		{"D09 double", answer("/blobs/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip, gzip")
			w.WriteHeader(200)
		}), "", errdefs.ErrDataLoss},
		{"D10 index with a config", replace(`"layers"`, `"manifests":[],"x"`), "", errdefs.ErrDataLoss},
		{"D10 header", func(reg *registrytest.Registry) {
			l := reg.Blob(ocispec.MediaTypeImageConfig, []byte(`{}`))
			reg.Manifest("1", ocispec.MediaTypeImageIndex,
				fmt.Appendf(nil, `{"schemaVersion":2,"config":%s,"layers":[]}`, registrytest.JSON(l)))
		}, "", errdefs.ErrDataLoss},
		{"D11 number", replace(`"size":`, `"size":1e400,"x":`), "", errdefs.ErrDataLoss},
		{"D11 deep", replace(`"layers":`, `"x":`+strings.Repeat("[", 1e5)+strings.Repeat("]", 1e5)+`,"layers":`), "",
			errdefs.ErrDataLoss},
		{"D11 not UTF-8", replace(`"layers":`, "\"\xff\":1,\"layers\":"), "", errdefs.ErrDataLoss},
		{"D12 length of 8 EiB", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n" +
				strings.Repeat(" ", MaxManifestSize+1))
			rw.Flush()
		}), "", errdefs.ErrDataLoss},
		{"D12 negative size", replace(`"size":`, `"size":-1,"x":`), "", errdefs.ErrDataLoss},
		{"D12 size of 2^63", replace(`"size":`, `"size":9223372036854775808,"x":`), "", errdefs.ErrDataLoss},
		{"D13 wide", func(reg *registrytest.Registry) {
			d := reg.Image("", amd64, nil, nil)
			reg.Index("1", slices.Repeat([]ocispec.Descriptor{d}, MaxIndexWidth+1)...)
		}, "", errdefs.ErrDataLoss},
		{"D13 many documents", func(reg *registrytest.Registry) {
			var all []ocispec.Descriptor
			for i := range maxDocuments {
				d := reg.Image("", ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("a", i)}, nil, nil)
				d.Platform = nil
				all = append(all, d)
			}
			reg.Index("1", all...)
		}, "", errdefs.ErrDataLoss},
		{"D13 attestations only", func(reg *registrytest.Registry) {
			d := reg.Image("", amd64, nil, nil)
			d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
			e := reg.Image("", amd64, nil, nil)
			e.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
			reg.Index("1", d, e)
		}, "", errdefs.ErrNotFound},
		{"D14 schema 1, signed", func(reg *registrytest.Registry) {
			reg.Manifest("1", "application/vnd.docker.distribution.manifest.v1+prettyjws",
				[]byte(`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`))
		}, "", mediatype.ErrNotRootfs},
		{"D14 schema 1 typed as 2", func(reg *registrytest.Registry) {
			reg.Manifest("1", images.MediaTypeDockerSchema2Manifest, []byte(`{"schemaVersion":1,"fsLayers":[]}`))
		}, "", mediatype.ErrNotRootfs},
		{"D15 diff ID", func(reg *registrytest.Registry) {
			l := reg.Blob(ocispec.MediaTypeImageLayerGzip, []byte("layer"))
			reg.Image("1", amd64, []ocispec.Descriptor{l}, []digest.Digest{"sha256:12"})
		}, "", errdefs.ErrDataLoss},
		{"D09 blob", answer("/blobs/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(200)
		}), "", errdefs.ErrDataLoss},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.New(t)
			tc.setup(reg)
			if tc.ref == "" {
				tc.ref = "/x:1"
			}
			store := newStore(t)
			img, err := pull(t.Context(), quick(t), store, reg.Host+tc.ref, nil)
			if !errors.Is(err, tc.class) {
				t.Fatalf("got %+v, %v", img, err)
			}
			if tc.testName != "D07 other blob" {
				return
			}
			poisoned := "layer-" + digest.FromBytes(random(700_000)).String()
			if s, err := store.Status(t.Context(), poisoned); !errdefs.IsNotFound(err) {
				t.Errorf("the poisoned ingest was left: %+v, %v", s, err)
			}
		})
	}
}

// TestNestedIndex checks that an index may be nested as deeply as MaxNesting allows.
func TestNestedIndex(t *testing.T) {
	reg := registrytest.New(t)
	d := reg.Image("", amd64, nil, nil)
	for range MaxNesting {
		d.Platform = nil
		d = reg.Index("1", d)
	}
	if img, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); err != nil ||
		len(img.Indexes) != MaxNesting {
		t.Fatal(img, err)
	}
}

// TestCut checks that a body which breaks is resumed, in one fetch and in the next one.
func TestCut(t *testing.T) {
	for _, tc := range []struct {
		testName string
		cuts     int32 // number of bodies that break
		fails    int   // number of fetches that fail
	}{
		{"within a fetch", 2, 0},
		{"across fetches", 100, 1},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			reg := registrytest.New(t)
			var left atomic.Int32
			left.Store(tc.cuts)
			_, data := image(reg)
			reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, digest.FromBytes(data[0]).String()) || left.Add(-1) < 0 {
					return false
				}
				if r.Header.Get("Range") == "" || tc.fails == 0 {
					w.Header().Set("Content-Length", "700000")
					if r.Header.Get("Range") != "" {
						return false
					}
					_, _ = w.Write(data[0][:400_000])
				}
				panic(http.ErrAbortHandler)
			}
			store := newStore(t)
			for range tc.fails {
				if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", nil); !errdefs.IsUnavailable(err) {
					t.Fatal(err)
				}
			}
			left.Store(min(left.Load(), int32(2-2*tc.fails)))
			if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", nil); err != nil {
				t.Fatal(err)
			}
			if n := reg.Count(digest.FromBytes(data[0]).String() + " bytes="); n == 0 {
				t.Errorf("nothing was resumed: %q", reg.Requests())
			}
			for _, line := range reg.Requests() {
				if strings.HasSuffix(line, "bytes=0-") {
					t.Error(line)
				}
			}
		})
	}
}

// TestPoisonedIngest checks that a fetch succeeds although an ingest has wrong bytes.
func TestPoisonedIngest(t *testing.T) {
	for _, wrong := range []int{1000, 700_000, 700_001} {
		t.Run(fmt.Sprint(wrong), func(t *testing.T) {
			reg := registrytest.New(t)
			_, data := image(reg)
			store := newStore(t)
			w, err := store.Writer(t.Context(), content.WithRef("layer-"+digest.FromBytes(data[0]).String()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, wrong)); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestWrongRange(t *testing.T) {
	reg := registrytest.New(t)
	_, data := image(reg)
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(data[0]).String()) || r.Header.Get("Range") == "" {
			return false
		}
		w.Header().Set("Content-Range", "bytes 0-699999/700000")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[0])
		return true
	}
	store := newStore(t)
	w, err := store.Writer(t.Context(), content.WithRef("layer-"+digest.FromBytes(data[0]).String()))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(data[0][:10])
	w.Close()
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err) // the second attempt has no range
	}
}

func TestStall(t *testing.T) {
	reg := registrytest.New(t)
	_, data := image(reg)
	var once atomic.Bool
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(data[0]).String()) || once.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", "700000")
		_, _ = w.Write(data[0][:500_000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	r, err := New(&Options{StallTimeout: 200 * time.Millisecond, Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	if reg.Count("bytes=500000-") != 1 {
		t.Errorf("%q", reg.Requests())
	}
}

func TestCancel(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	ctx, cancel := context.WithCancel(t.Context())
	reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	}
	if _, err := pull(ctx, quick(t), newStore(t), reg.Host+"/x:1", nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestNobodyThere(t *testing.T) {
	server := httptest.NewServer(nil)
	host := strings.TrimPrefix(server.URL, "http://")
	server.Close()
	if _, err := pull(t.Context(), quick(t), newStore(t), host+"/x:1", nil); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
}

// TestToken uses an anonymous token, and checks that the target of a redirect does not see it.
func TestToken(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	var leaked atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization") + r.Header.Get("Cookie") + r.Header.Get("Referer"); a != "" {
			leaked.Store(a)
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(other.Close)
	var tokens atomic.Int32
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			tokens.Add(1)
			fmt.Fprint(w, `{"token":"secret","expires_in":300}`)
			return true
		case "http://"+r.Host == other.URL:
			return false
		case r.Header.Get("Authorization") != "Bearer secret":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, reg.Host))
			w.WriteHeader(401)
			return true
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	if _, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	if leaked.Load() != nil {
		t.Errorf("the redirect carried %q", leaked.Load())
	}
	if tokens.Load() != 1 {
		t.Errorf("%d tokens were requested", tokens.Load())
	}
}

func TestHostsDir(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "example.test"), 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf(
		"server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", reg.Host)
	if err := os.WriteFile(filepath.Join(dir, "example.test", "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := New(&Options{HostsDir: dir, Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	img, err := pull(t.Context(), r, newStore(t), "example.test/x:1", nil)
	if err != nil || img.Ref != "example.test/x:1" {
		t.Fatal(img, err)
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://127.0.0.1:1/x?signature=hush", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	_, err := pull(t.Context(), quick(t), newStore(t), reg.Host+"/x:1", nil)
	if !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "hush") {
		t.Fatal(err)
	}
}
