package resolver

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestRangeRefused checks servers and firewalls that refuse ranges: an interrupted download starts
// again once, in the same pull and in a later one.
func TestRangeRefused(t *testing.T) {
	t.Parallel()
	faults := map[string]registrytest.Fault{
		"416": registrytest.Unsatisfiable,
		"cut": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
	}
	for _, status := range []int{400, 403, 405, 406, 412, 417, 500, 501, 502, 503} {
		faults[fmt.Sprint(status)] = registrytest.Answer(status, nil)
	}
	for name, fault := range faults {
		for _, wide := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", wide), func(t *testing.T) {
				t.Parallel()
				reg, data, r := large(t)
				r.divided = wide
				reg.Fault = registrytest.On(layerPath(data), registrytest.First(
					func(w http.ResponseWriter, req *http.Request) bool {
						return req.Header.Get("Range") != "" && fault(w, req)
					},
					registrytest.Times(1, registrytest.Cut(data, 300_000)),
				))
				store := newStore(t)
				if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
					t.Fatal(err, reg.Requests())
				}
				holds(t, store, data)
			})
		}
	}
}

// TestRangeRefusedLater checks that the ingest of a failed pull does not make later pulls fail.
func TestRangeRefusedLater(t *testing.T) {
	t.Parallel()
	reg, data, r := large(t)
	down := true
	reg.Fault = registrytest.On(layerPath(data), func(w http.ResponseWriter, req *http.Request) bool {
		switch {
		case req.Header.Get("Range") != "":
			return registrytest.Answer(403, nil)(w, req)
		case down:
			return registrytest.First(registrytest.Cut(data, 300_000))(w, req)
		}
		return false
	})
	r.divided = false
	store := newStore(t)
	if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	before := reg.Count(layerPath(data))
	down = false
	if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	holds(t, store, data)
	if n := reg.Count(layerPath(data)) - before; n != 2 {
		t.Errorf("%d requests, not one that is refused and one for everything", n)
	}
}
