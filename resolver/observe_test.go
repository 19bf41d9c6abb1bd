package resolver

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/observe/observetest"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestObserve checks that the download of each blob is one operation with the bytes that came from
// the network, also if it resumes an earlier download, if wrong bytes make it start again, and if
// it fails. A blob that the store has is not downloaded.
func TestObserve(t *testing.T) {
	reg := registrytest.New(t)
	manifest, data := image(reg)
	layers := []digest.Digest{digest.FromBytes(data[0]), digest.FromBytes(data[1])}
	store := newStore(t)
	w, err := store.Writer(t.Context(), content.WithRef("layer-"+layers[0].String()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[0][:100_000]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	flipped := slices.Clone(data[1])
	flipped[0] ^= 1
	reg.Fault = registrytest.On(layerPath(data[1]), registrytest.Times(1, registrytest.NoRanges(flipped)))

	seen := observetest.New(t)
	pullObserved := func(refresh bool) error {
		r := newResolver(t, func(o *Options) { o.Observe = seen })
		_, err := pull(t.Context(), r, store, reg.Host+"/x:1", &FetchOptions{Refresh: refresh})
		return err
	}
	if err := pullObserved(false); err != nil {
		t.Fatal(err)
	}
	config := configOf(t, reg, manifest)
	want := map[string]observe.Result{
		config.Digest.String(): {Bytes: config.Size},
		layers[0].String():     {Bytes: int64(len(data[0])) - 100_000},
		layers[1].String():     {Bytes: 2 * int64(len(data[1]))},
	}
	check := func() {
		t.Helper()
		ended := seen.Ended(observe.Download)
		for _, op := range ended {
			if res, ok := want[op.Subject]; !ok || res != op.Result || op.Source != reg.Host {
				t.Errorf("%+v", op)
			}
		}
		if len(ended) != len(want) || seen.Open() != 0 {
			t.Errorf("%d operations, %d did not end", len(ended), seen.Open())
		}
	}
	check()
	if err := pullObserved(false); err != nil {
		t.Fatal(err)
	}
	check() // the store had everything

	reg.Fault = registrytest.On("/blobs/", registrytest.Answer(403, nil))
	err = pullObserved(true)
	last := seen.Ended(observe.Download)
	if len(last) != 4 || last[3].Result.Err == nil || last[3].Result.Bytes != 0 ||
		!strings.Contains(err.Error(), last[3].Result.Err.Error()) {
		t.Errorf("%v: %+v", err, last)
	}
}
