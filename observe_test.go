package tank_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/observe/observetest"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestObserve shows which operations the observer of a root gets: the downloads, the unpack and the
// sync of a pull, the hit of a second pull, and the sweeps of a collection.
func TestObserve(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", []Item{F("a", "1")})
	ref := reg.Host + "/x:1"
	seen := observetest.New(t)
	tk, err := tank.Open(filepath.Join(t.TempDir(), "root"), &tank.Options{Daemon: true, Observe: seen})
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
				t.Errorf("%s: %d operations of kind %s, want %d: %+v", when, len(got), kind, n, got)
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
	if len(seen.Ended(observe.Sync)) == 0 {
		t.Error("no sync was observed")
	}
	unpacked := slices.ContainsFunc(seen.Ended(observe.Unpack), func(op observetest.Operation) bool {
		return op.Result.Err == nil // an unpack that began before the blob arrived may have failed
	})
	if !unpacked {
		t.Errorf("unpacks: %+v", seen.Ended(observe.Unpack))
	}
	expect("the first pull", map[observe.Kind]int{observe.Download: 2, observe.Hit: 0})
	pull()
	if hits := seen.Ended(observe.Hit); len(hits) != 1 || hits[0].Subject != ref {
		t.Errorf("hits: %+v", hits)
	}
	expect("the second pull", map[observe.Kind]int{observe.Download: 0, observe.Hit: 1})
	must(t, tk.Remove(t.Context(), ref))
	_, err = tk.GC(t.Context())
	must(t, err)
	if n := len(seen.Ended(observe.Sweep)); n < 2 {
		t.Errorf("%d sweeps, want one of blobs and one of layers", n)
	}
}
