package tank_test

import (
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/observe/observetest"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestObserve shows what an observer of a root sees: the downloads of the config and the layer, a
// hit of the second pull, and the sweeps of a collection.
func TestObserve(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", []Item{F("a", "1")})
	ref := reg.Host + "/x:1"
	seen := observetest.New(t)
	tk, err := tank.Open(filepath.Join(t.TempDir(), "root"), &tank.Options{Observe: seen})
	must(t, err)
	defer func() { must(t, tk.Close()) }()
	pull := func() {
		t.Helper()
		_, err := tk.Pull(t.Context(), ref, &tank.PullOptions{PlainHTTP: true})
		must(t, err)
	}
	expect := func(when string, want map[observe.Kind]int) {
		t.Helper()
		for kind, n := range want {
			got := seen.Ended(kind)
			if len(got) != n {
				t.Errorf("%s: %d of %s instead of %d: %+v", when, len(got), kind, n, got)
			}
			for _, op := range got {
				if op.Result.Err != nil {
					t.Errorf("%s: %+v", when, op)
				}
			}
		}
		if n := seen.Open(); n != 0 {
			t.Errorf("%s: %d operations have not ended", when, n)
		}
		seen.Reset()
	}
	pull()
	expect("the first pull", map[observe.Kind]int{observe.Download: 2, observe.Hit: 0})
	pull()
	if hits := seen.Ended(observe.Hit); len(hits) != 1 || hits[0].Subject != ref {
		t.Errorf("hits: %+v", hits)
	}
	expect("the second pull", map[observe.Kind]int{observe.Download: 0, observe.Hit: 1})
	must(t, tk.Remove(t.Context(), ref))
	_, err = tk.GC(t.Context())
	must(t, err)
	if len(seen.Ended(observe.Sweep)) == 0 {
		t.Error("no sweep was seen")
	}
}
