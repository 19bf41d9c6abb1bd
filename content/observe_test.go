package content

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/observe/observetest"
)

// TestObserve shows that an observer sees one hit when a holder comes to hold a blob that is in the
// store, and each sweep.
func TestObserve(t *testing.T) {
	rec := observetest.New(t)
	r := open(t, t.TempDir(), &Options{Observe: rec})
	d := put(t, r.For(alice), "data")
	if got := rec.Ended(observe.Hit); len(got) != 0 {
		t.Errorf("hits before any: %+v", got)
	}
	_, err := r.For(bob).Info(t.Context(), d)
	must(t, err)
	desc := ocispec.Descriptor{Digest: d, Size: 4}
	_, err = r.For(bob).Writer(t.Context(), content.WithRef("ref"), content.WithDescriptor(desc))
	class(t, errdefs.IsAlreadyExists, err)
	_, err = r.For(bob).Info(t.Context(), "sha256:missing")
	class(t, errdefs.IsInvalidArgument, err)
	hit := observetest.Operation{Event: observe.Event{Kind: observe.Hit, Subject: d.String(), Bytes: 4}}
	if got := rec.Ended(observe.Hit); !slices.Equal(got, []observetest.Operation{hit}) {
		t.Errorf("hits: %+v", got)
	}
	for _, hs := range []*HolderStore{r.For(alice), r.For(bob)} {
		must(t, hs.Delete(t.Context(), d))
	}
	_, err = r.Sweep(t.Context())
	must(t, err)
	sweep := observetest.Operation{
		Event: observe.Event{Kind: observe.Sweep, Subject: "content"}, Result: observe.Result{Bytes: 4, Count: 1},
	}
	if got := rec.Ended(observe.Sweep); !slices.Equal(got, []observetest.Operation{sweep}) || rec.Open() != 0 {
		t.Errorf("sweeps: %+v, %d have not ended", got, rec.Open())
	}
}
