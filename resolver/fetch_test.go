package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestFlights checks that two fetches of one blob into one store download it once, and that the
// second one continues if the first is canceled.
func TestFlights(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		t.Run(fmt.Sprint(cancelled), func(t *testing.T) {
			reg := registrytest.New(t)
			_, all := image(reg)
			data := all[0]
			begun, goOn := make(chan struct{}), make(chan struct{})
			reg.Fault = registrytest.On(layerPath(data),
				registrytest.Times(1, func(_ http.ResponseWriter, r *http.Request) bool {
					close(begun)
					select {
					case <-goOn:
					case <-r.Context().Done():
					}
					return false
				}))
			store, flights := newStore(t), NewInFlight()
			fetch := func(ctx context.Context) error {
				r := newResolver(t, func(o *Options) { o.InFlight = flights })
				_, err := pull(ctx, r, store, reg.Host+"/x:1", nil)
				return err
			}
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- fetch(ctx) }()
			<-begun
			go func() { second <- fetch(t.Context()) }()
			time.Sleep(100 * time.Millisecond)
			if n := reg.Count(layerPath(data)); n != 1 {
				t.Errorf("%d downloads at once", n)
			}
			requests := 1
			if cancelled {
				cancel()
				requests = 2
			} else {
				close(goOn)
			}
			if err := <-first; (err != nil) != cancelled {
				t.Error(err)
			}
			if err := <-second; err != nil {
				t.Error(err)
			}
			cancel()
			holds(t, store, data)
			if n := reg.Count(layerPath(data)); n != requests || flights.Len() != 0 {
				t.Errorf("%d downloads, %d turns left", n, flights.Len())
			}
		})
	}
}

// TestRefresh checks that a refresh requests everything again, and that a failed one leaves the
// store as it was.
func TestRefresh(t *testing.T) {
	reg := registrytest.New(t)
	manifest, data := image(reg)
	reg.Index("multi", manifest)
	store := newStore(t)
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:multi", nil); err != nil {
		t.Fatal(err)
	}
	var layers atomic.Int32
	before := len(reg.Requests())
	img, err := pull(t.Context(), quick(t), store, reg.Host+"/x:multi",
		&FetchOptions{Refresh: true, OnLayer: func(ocispec.Descriptor) error {
			layers.Add(1)
			return nil
		}})
	if err != nil || img.Fetched != 5 || len(reg.Requests())-before != 5 || layers.Load() != 2 {
		t.Fatalf("%+v, %v, %d layers, %q", img, err, layers.Load(), reg.Requests()[before:])
	}
	reg.Fault = registrytest.On(layerPath(data[0]), registrytest.Answer(200, []byte("other")))
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:multi",
		&FetchOptions{Refresh: true}); !errdefs.IsDataLoss(err) {
		t.Fatal(err)
	}
	holds(t, store, data[0])
}

// TestOnLayer checks that OnLayer is called for layers in the store as well, and that its error
// ends the fetch.
func TestOnLayer(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	store := newStore(t)
	for range 2 {
		var n atomic.Int32
		_, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1",
			&FetchOptions{OnLayer: func(d ocispec.Descriptor) error {
				if _, err := store.Info(t.Context(), d.Digest); err != nil {
					t.Error(err)
				}
				n.Add(1)
				return nil
			}})
		if err != nil || n.Load() != 2 {
			t.Fatal(n.Load(), err)
		}
	}
	want := errors.New("enough")
	if _, err := pull(t.Context(), quick(t), store, reg.Host+"/x:1",
		&FetchOptions{OnLayer: func(ocispec.Descriptor) error { return want }}); !errors.Is(err, want) {
		t.Fatal(err)
	}
}

// TestLargestFirst checks the order in which layers are downloaded.
func TestLargestFirst(t *testing.T) {
	sized := func(sizes ...int64) (list []ocispec.Descriptor) {
		for _, n := range sizes {
			list = append(list, ocispec.Descriptor{Size: n})
		}
		return list
	}
	layers := sized(3, 9, 1, 9)
	layers[1].MediaType = "the first of two"
	got := largestFirst(layers)
	want := sized(9, 9, 3, 1)
	want[0].MediaType = "the first of two"
	if !reflect.DeepEqual(got, want) || layers[0].Size != 3 {
		t.Errorf("%v of %v", got, layers)
	}
}

// TestOneByOne downloads a manifest and then its blobs, as the author of a runtime would.
func TestOneByOne(t *testing.T) {
	reg := registrytest.New(t)
	desc, data := image(reg)
	index := reg.Index("multi", desc)
	r := quick(t)
	ref, err := NewReference(reg.Host, "x", "multi")
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Manifest(t.Context(), ref)
	if err != nil || m.Index == nil || m.Manifest != nil || m.Descriptor().Digest != index.Digest ||
		m.Index.Manifests[0].Digest != desc.Digest {
		t.Fatal(m, err)
	}
	if ref, err = NewReference(reg.Host, "x", desc.Digest.String()); err != nil {
		t.Fatal(err)
	}
	if m, err = r.Manifest(t.Context(), ref); err != nil || m.Manifest == nil ||
		m.MediaType != ocispec.MediaTypeImageManifest {
		t.Fatal(m, err)
	}
	for i, l := range m.Manifest.Layers {
		body, err := r.Blob(t.Context(), ref, l)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data[i]) {
			t.Fatal(err)
		}
		body.Close()
	}
	early, err := r.Blob(t.Context(), ref, m.Manifest.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	early.Close()
	if _, err := r.Blob(t.Context(), ref,
		ocispec.Descriptor{Digest: digest.FromString("no"), Size: 1}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := r.Blob(t.Context(), ref, ocispec.Descriptor{Digest: "no", Size: 1}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	reg.Fault = registrytest.First(registrytest.Times(1, registrytest.Cut(data[0], 100_000)))
	body, err := r.Blob(t.Context(), ref, m.Manifest.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data[0]) {
		t.Error(err)
	}
	body.Close()
	evil := bytes.Clone(data[0])
	evil[0] ^= 1
	lying := registrytest.New(t)
	lying.Fault = registrytest.NoRanges(evil)
	if ref, err = NewReference(lying.Host, "x", ""); err != nil {
		t.Fatal(err)
	}
	if body, err = r.Blob(t.Context(), ref, m.Manifest.Layers[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(body); !errdefs.IsDataLoss(err) {
		t.Error(err)
	}
	body.Close()
}

func TestNewReference(t *testing.T) {
	d := digest.FromString("x").String()
	for _, tc := range []struct{ registry, repo, ref, want string }{
		{"localhost:5000", "a/b", "1", "localhost:5000/a/b:1"},
		{"localhost:5000", "a/b", "", "localhost:5000/a/b:latest"},
		{"ghcr.io", "a", d, "ghcr.io/a@" + d},
		{"docker.io", "alpine", "3", "docker.io/library/alpine:3"},
		{"docker.io", "library/alpine", "3", "docker.io/library/alpine:3"},
		{"index.docker.io", "me/x", "3", "docker.io/me/x:3"},
		{"", "alpine", "3", ""},
		{"alpine", "x", "3", ""}, // Docker Hub's alpine/x
		{"r.io/x", "y", "3", ""},
		{"r.io", "y:1", "3", ""},
		{"r.io", "y", "a b", ""},
	} {
		ref, err := NewReference(tc.registry, tc.repo, tc.ref)
		if ref.String() != tc.want || (err != nil) != (tc.want == "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %q, %v", tc, ref, err)
		}
	}
}
